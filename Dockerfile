# fastmoco with DALI and all evaluations, for a machine with an NVIDIA driver that CUDA 13 accepts:
#   docker build -t fastmoco .
#   docker run --rm --gpus all --shm-size=8g -v "$PWD:/work" fastmoco train experiment=own data.train=photos.beton
# It was linted (hadolint) and never built: no container runtime was at hand. The wheels of torch bring CUDA; the image needs no toolkit.
FROM python:3.12-slim-bookworm

SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# g++ compiles what torch.compile writes for the CPU.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/fastmoco
COPY . .
# Build isolation is off, so that the build uses the pinned setuptools.
RUN python -m pip install --no-cache-dir -c constraints.txt pip setuptools wheel \
    && python -m pip install --no-cache-dir --no-build-isolation -c constraints.txt '.[dali-cuda13,eval]'

RUN useradd --create-home --uid 1000 user
USER 1000
WORKDIR /work
ENTRYPOINT ["fastmoco"]
CMD ["--help"]
