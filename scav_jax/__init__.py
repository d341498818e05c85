"""scav_jax: sequential contrastive audio-visual learning (SCAV) in JAX.

How a video becomes a rank, and which module does it. Data flows one way: a module imports only
from modules above it in this list, and `tests/test_architecture.py` keeps that true.

words shared by all
    errors         InputError: what a person can mend; how a program reports it
    doors          a name of ours, or a dotted path to what a user wrote
    files          files and folders that appear whole or not at all
    commands       the programs, and the one parser of their command lines
    progress       one kind of progress bar
    containers     a media file opened for reading, the same with every version of PyAV
    sequences      padded sequences and their lengths: masks, means, resampling in time
    positions      relative positions: offsets between steps -> rows of a learned table
    features       what one clip is on disk: keys, shapes, units, format version, fingerprint
    sharding       the device mesh; the only file that names a PartitionSpec
    compiled       what a compiled program needs: memory, communication
video files -> features on disk
    datasets       features on disk as TFDS data sets; `chimes`, rendered data that ships with us
    extract        decode, frozen backbones: `scav extract`
features on disk -> batches on devices
    batches        the Grain pipeline: shuffle, bucket, pad, shard, checkpoint
    prefetch       the next batch on the devices while the step runs
the mathematics (jax, flax, optax, ott only)
    encoders       projection MLPs, relative-position Transformers: features -> latents
    distances      euclidean, dtw, wasserstein; `pairwise` -> D[visual, audio]
    objectives     L_agg (CAV) and L_seq (SCAV)
    optimizer      AdamW, warm-up and cosine, what is not decayed
    gradient_cache  the gradient of a whole batch in the memory of a part
    train_step     the training state and its pure step function
programs
    config         a tree of frozen dataclasses: a run's document, defaults and check in one
    config_files   `--config FILE[:VARIANT] --config.SECTION.KEY=VALUE`
    processes      one process or many: starting, agreeing, stopping, when one is lost
    checkpoints    save, resume, keep the latest and the best, average
    runs           a run on disk: its config, and its model once it is trained
    retrieve       aggregation, sequence and hybrid(k) retrieval: functions of arrays
    embed          a model + features -> latents, embeddings, ids
    embed_files    files, and windows of them -> latents
    model          three lines: load a model, embed files
    metrics        ranks and recall
    index          clips on disk, and the search in them: `scav index`
    records        what a run writes while it trains: metrics.jsonl, TensorBoard, rates
    profiling      where the time goes: a trace, and a table by part
    costs          FLOPs and memory of a training step, by arithmetic
    trial          that step compiled, and run on random features
    plan           memory, FLOPs, time and input before a run: `scav plan`
    settings       a run's config sections, checked: data, towers, objective, ready to train
    validation     recall of a model in training, and which checkpoint is better
    train          the loop: `scav train --config vggsound`
    report         the results as document, table and report.html
    search         a file in, ranked clips out: `scav search`
    export         a trained model as files: `scav export`
    inspect        what is in a data set or a folder of videos: `scav inspect`
    evaluate       the paper's tables on any data set: `scav evaluate`
    web            a local page to search with: `scav web`

Importing `scav_jax` touches no device, no file and no flag.
"""

__version__ = "0.1.0"
