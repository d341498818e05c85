"""scav_jax: sequential contrastive audio-visual learning (SCAV) in JAX.

How a video becomes a rank, and which room does it. Data flows one way: a room imports only from
rooms above it in this list, and `tests/test_architecture.py` keeps that true.

ground
    base           what a person can mend, files that appear whole and are read whole, doors
    sequences      padded sequences and their lengths: masks, means, resampling in time
the mathematics (jax, flax, optax, ott only)
    sharding       the device mesh; the only file that names a PartitionSpec
    encoders       projection MLPs, relative-position Transformers; ViTs: features -> latents
    distances      euclidean, dtw, wasserstein; `pairwise` -> D[visual, audio]
    views          parts of a clip, played faster or backwards, made of stored features
    objectives     L_agg (CAV), L_seq (SCAV), temporal tasks, EquiAV, sums of them; labels
    optimizer      AdamW, warm-up and cosine, what is not decayed
    gradient_cache  the gradient of a whole batch in the memory of a part
    train_step     the training state and its pure step function
    retrieve       aggregation, sequence and hybrid(k) retrieval: functions of arrays
    metrics        ranks and recall; average precision
features
    features       what a clip is on disk, data sets of clips, batches (Grain), the next one ahead
    extract        video files -> features, by frozen backbones: `scav extract`
    datasets       lists of known data sets; `chimes`, rendered data that ships with us
a run, and what is made of it
    training       its config, its processes, its checkpoints, what it writes, where time goes
    retrieval      a trained model in use: `model` loads one and embeds files; validation, results
    index          clips on disk, and the search in them: `scav index`
    report         the results as document, table and report.html
programs
    plan           memory, FLOPs, time and input before a run: `scav plan`
    train          `scav train --config vggsound`
    evaluate       the paper's tables on any data set: `scav evaluate`
    probe          what features tell beside retrieval: `scav probe`
    search         a file in, ranked clips out: `scav search`
    score          how well a sound fits a picture, and where: `scav score`
    export         a trained model as files: `scav export`; released weights too
    inspect        what is in a data set or a folder of videos: `scav inspect`
    web            a local page to search with: `scav web`

Importing `scav_jax` touches no device, no file and no flag.
"""

__version__ = "0.1.0"
