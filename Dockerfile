# The command line with everything:
#
#   docker build --build-arg VERSION="$(git describe --tags)" -t totalvi .
#   docker run --rm -v "$PWD:/data" totalvi run filtered_feature_bc_matrix.h5 -o results
#
# The loops of a run are compiled while the image is built, for processors like that of the machine that builds it. On others
# they are compiled at their first use, into a folder that any user of the container may write to, and that Docker forgets with
# the container. Where the image cannot be written to, as by Apptainer, numba keeps them in the home folder of the user.
#
# By default PyTorch is the build for NVIDIA GPUs (`docker run --gpus all`). For its much smaller build for processors, give
# the index that pytorch.org names for it: `--build-arg TORCH_INDEX=...`.
FROM python:3.13-slim AS build
ARG TORCH_INDEX=""
ARG VERSION=""
COPY . /source
RUN python -m venv /opt/totalvi \
 && export ${VERSION:+SETUPTOOLS_SCM_PRETEND_VERSION=$VERSION} \
 && /opt/totalvi/bin/pip install --no-cache-dir --constraint /source/constraints.txt ${TORCH_INDEX:+--index-url $TORCH_INDEX} torch \
 && /opt/totalvi/bin/pip install --no-cache-dir --constraint /source/constraints.txt "/source[all]"

FROM python:3.13-slim
COPY --from=build /opt/totalvi /opt/totalvi
ENV PATH=/opt/totalvi/bin:$PATH HOME=/home/totalvi NUMBA_CACHE_DIR=/opt/totalvi/compiled
RUN useradd --create-home totalvi && mkdir /home/totalvi/.cache && chmod 1777 /home/totalvi /home/totalvi/.cache \
 && HOME=/tmp python -m totalvi.run.first_use && chmod -R a+rwX $NUMBA_CACHE_DIR
USER totalvi
WORKDIR /data
ENTRYPOINT ["totalvi"]
CMD ["--help"]
