// Simulated cells of two batches through the module: `nextflow run main.nf` in this folder, with nextflow.config beside it.
include { TOTALVI_RUN } from '../main.nf'

process SIMULATE {
    output:
    path "cells.h5mu"

    script:
    """
    totalvi simulate -o cells.h5mu --cells 300 --genes 100 --proteins 10 --batches 2
    """

    stub:
    """
    touch cells.h5mu
    """
}

workflow {
    SIMULATE()
    TOTALVI_RUN(SIMULATE.out.map { counts -> [[id: 'simulated'], counts, []] })
    TOTALVI_RUN.out.report.view { meta, report -> "${meta.id}: ${report}" }
}
