from avl.kernels.bench.attention import main

main()
