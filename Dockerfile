# README.md, "Docker", has the lines that build and run it. No weights beyond assets/ are in the image, and no GPU is needed to build it.
# No CUDA image: torch's wheels bring what it would hold, and it would refuse drivers that serve them
ARG PYTHON=python:3.12-slim-trixie

FROM ${PYTHON} AS packages
# cuda: torch for NVIDIA GPUs, and Triton; cpu: neither
ARG VARIANT=cuda
# where the wheels of torch without CUDA are listed: a page, or a folder
ARG TORCH_CPU=https://download.pytorch.org/whl/cpu/torch/
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_PROGRESS=1
COPY .docker/lock-uv.txt /locks/
RUN python3 -m venv /uv \
 && /uv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r /locks/lock-uv.txt \
 && python3 -m venv --without-pip /opt/venv
COPY .docker/lock.txt .docker/lock-${VARIANT}.txt /locks/
RUN --mount=type=cache,target=/root/.cache/uv \
    if [ "${VARIANT}" = cpu ]; then export UV_FIND_LINKS="${TORCH_CPU}"; fi \
 && /uv/bin/uv pip install --python /opt/venv --no-build --require-hashes -r /locks/lock.txt -r /locks/lock-${VARIANT}.txt \
 && chmod -R go=rX /opt/venv

FROM ${PYTHON} AS code
WORKDIR /app
COPY . .
# readable whatever the umask of the checkout was; compiled here, because nothing can be written where it runs
RUN mv .docker/health.py . \
 && rm -r .docker \
 && chmod -R u=rwX,go=rX . \
 && python3 -m compileall -q --invalidation-mode unchecked-hash .

FROM ${PYTHON}
ARG VARIANT=cuda
# tini forwards signals. Triton compiles its launcher at run time: gcc, the C library's headers, and Python's, which the base has
RUN apt-get update \
 && if [ "${VARIANT}" = cuda ]; then launcher="gcc libc6-dev"; fi \
 && apt-get install -y --no-install-recommends tini ${launcher} \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --no-create-home --home-dir /cache user \
 && install -d -m 1777 /cache
COPY --from=packages /opt/venv /opt/venv
COPY --from=code /app /app

# compute: CUDA; utility: NVML, which reads memory and power. All that is to last is in /cache: weights, and what Triton, numba and CUDA
# compiled; uploads are in /tmp and end with the container
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_SERVER_PORT=7860 \
    GRADIO_ANALYTICS_ENABLED=False \
    GRADIO_TEMP_DIR=/tmp/gradio \
    HOME=/cache \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    NUMBA_CACHE_DIR=/cache/numba \
    CUDA_CACHE_PATH=/cache/nv
WORKDIR /app
USER 1000:1000
VOLUME /cache
EXPOSE 7860
STOPSIGNAL SIGTERM
# the period is long because a first start downloads weights; a page that is ready sooner is healthy sooner
HEALTHCHECK --start-period=1h --interval=15s --timeout=10s CMD ["python", "health.py"]
ENTRYPOINT ["tini", "--", "python", "app.py"]
