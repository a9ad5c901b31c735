# The command line with everything, on a processor:
#
#   docker build -t totalvi .
#   docker run --rm -v "$PWD:/data" totalvi run filtered_feature_bc_matrix.h5 -o results
#
# With NVIDIA GPUs, build with `--build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128` and run with `--gpus all`.
FROM python:3.13-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY . /source
RUN python -m venv /opt/totalvi \
 && /opt/totalvi/bin/pip install --no-cache-dir --constraint /source/constraints.txt --index-url "$TORCH_INDEX" torch \
 && /opt/totalvi/bin/pip install --no-cache-dir --constraint /source/constraints.txt "/source[all]"

FROM python:3.13-slim
COPY --from=build /opt/totalvi /opt/totalvi
# numba keeps compiled loops here; another user than root may write
ENV PATH=/opt/totalvi/bin:$PATH NUMBA_CACHE_DIR=/tmp/numba MPLCONFIGDIR=/tmp/matplotlib
RUN useradd --create-home totalvi
USER totalvi
WORKDIR /data
ENTRYPOINT ["totalvi"]
CMD ["--help"]
