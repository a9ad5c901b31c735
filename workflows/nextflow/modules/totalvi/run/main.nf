process TOTALVI_RUN {
    tag "$meta.id"
    label 'process_high'

    conda "${moduleDir}/environment.yml"
    container "${params.totalvi_container ?: 'totalvi:latest'}"

    input:
    tuple val(meta), path(counts, stageAs: 'input/*'), path(raw, stageAs: 'raw/*')

    output:
    tuple val(meta), path("${prefix}/results.h5mu")  , emit: h5mu  , optional: true
    tuple val(meta), path("${prefix}/results.zarr")  , emit: zarr  , optional: true
    tuple val(meta), path("${prefix}/model.totalvi") , emit: model
    tuple val(meta), path("${prefix}/tables")        , emit: tables
    tuple val(meta), path("${prefix}/figures")       , emit: figures
    tuple val(meta), path("${prefix}/report.html")   , emit: report
    tuple val(meta), path("${prefix}/run.json")      , emit: record
    path "versions.yml"                              , emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    def empty_droplets = raw ? "--raw ${raw}" : ''
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    export OMP_NUM_THREADS=${task.cpus} NUMBA_NUM_THREADS=${task.cpus}
    # compiled loops are kept where NUMBA_CACHE_DIR says, else in the home folder, else, for this task alone, in its folder
    if [ ! -w "\${HOME:-/}" ]; then
        export NUMBA_CACHE_DIR="\${NUMBA_CACHE_DIR:-\$PWD/.numba}" MPLCONFIGDIR="\${MPLCONFIGDIR:-\$PWD/.matplotlib}"
    fi

    totalvi run ${counts} --output ${prefix} ${empty_droplets} ${args}

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        totalvi: \$(totalvi --version | sed 's/^totalvi //')
    END_VERSIONS
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    mkdir -p ${prefix}/model.totalvi ${prefix}/tables ${prefix}/figures
    touch ${prefix}/results.h5mu ${prefix}/report.html ${prefix}/run.json

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        totalvi: \$(totalvi --version | sed 's/^totalvi //')
    END_VERSIONS
    """
}
