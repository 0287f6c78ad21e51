# A workstation with an NVIDIA GPU: docker run --gpus all -p 127.0.0.1:7860:7860 -v hf:/home/user/.cache/huggingface avl --model llava-1.5-7b
# Without --gpus the bundled model runs on the CPU. No GPU is needed to build, no weights beyond assets/ are in the image.
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04

ENV PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_ANALYTICS_ENABLED=False \
    GRADIO_TEMP_DIR=/home/user/.cache/gradio \
    HF_HOME=/home/user/.cache/huggingface

# gcc and the Python headers: Triton compiles its launcher at run time
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3.12 python3.12-venv python3.12-dev gcc curl tini \
 && rm -rf /var/lib/apt/lists/* \
 && (userdel -r ubuntu || true) \
 && useradd -m -u 1000 user

USER user
WORKDIR /home/user/app
COPY --chown=user requirements.txt .
RUN python3.12 -m venv /home/user/venv && /home/user/venv/bin/pip install -r requirements.txt
COPY --chown=user . .
# created here, so that a volume mounted over it belongs to the user
RUN mkdir -p /home/user/.cache/huggingface /home/user/.cache/gradio

EXPOSE 7860
HEALTHCHECK --start-period=15m --interval=30s CMD curl -fsS http://127.0.0.1:7860/healthz
ENTRYPOINT ["tini", "--", "/home/user/venv/bin/python", "app.py"]
