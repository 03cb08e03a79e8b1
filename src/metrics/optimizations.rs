//! What shows that an optimization acted: one row each.

use super::impact::fact;
use super::{Fact, FactKind};

/// Evidence, in the order of its columns.
pub(super) const FACTS: &[Fact] = &[
    fact("pack_records", FactKind::Integer, "Records of the pack that was made of the package."),
    fact(
        "pack_products",
        FactKind::Integer,
        "Those of them that kernels of this program multiply with: quantized matrices, and experts.",
    ),
    fact(
        "compression_cache_bytes_per_token_before",
        FactKind::Integer,
        "Bytes of a token's keys and values in the package's own form.",
    ),
    fact("compression_cache_bytes_per_token_after", FactKind::Integer, "Bytes of them as they are kept."),
    fact("compression_cache_ratio", FactKind::Score, "The first ÷ the second."),
    fact(
        "compression_cache_error",
        FactKind::Score,
        "Root mean square of what quantization changes in the calibration's keys and values ÷ that of the values.",
    ),
    fact("compression_calibration_tokens", FactKind::Integer, "Tokens over which the scales were measured."),
    fact("shards_stored_bytes", FactKind::Integer, "Bytes of the pack's records on disk."),
    fact("shards_decoded_bytes", FactKind::Integer, "Bytes of them in memory."),
    fact(
        "compression_shards_ratio",
        FactKind::Score,
        "Bytes of records in memory ÷ on disk, of a pack that is compressed.",
    ),
    fact("compression_shards_records", FactKind::Integer, "Records that are compressed."),
    fact(
        "compression_offload_ratio",
        FactKind::Score,
        "Bytes of caches and hidden states that waited on disk, as they are in memory ÷ as they went over the disk.",
    ),
    fact(
        "paging_read_bytes_per_token",
        FactKind::Score,
        "Bytes that the loader read from disk ÷ generated tokens, prefill and decode together.",
    ),
    fact("paging_hit_share", FactKind::Score, "Share of the routed experts asked for that were in memory already."),
    fact(
        "paging_wait_share",
        FactKind::Score,
        "Share of the measured time in which the computation waited for the loader.",
    ),
    fact(
        "paging_evictions",
        FactKind::Integer,
        "Records that were dropped to make room, over all measured runs of the first optimized process.",
    ),
    fact(
        "paging_peak_bytes",
        FactKind::Integer,
        "The most that the loader held, records that are being read included.",
    ),
    fact(
        "waiting_written_bytes_per_token",
        FactKind::Score,
        "Bytes of caches and hidden states that went to disk ÷ generated tokens.",
    ),
    fact("waiting_read_bytes_per_token", FactKind::Score, "Bytes of them that came back ÷ generated tokens."),
    fact(
        "batch_chosen",
        FactKind::Integer,
        "Sequences together that the search settled on, or came to before the queue ended.",
    ),
    fact("batch_best_fixed", FactKind::Integer, "The fixed number of a sweep with the most tokens a second."),
    fact(
        "batch_adaptive_share_of_best",
        FactKind::Score,
        "Tokens a second of the queue with the number found while running, the search included, ÷ with the best fixed \
         number; the median of five pairs.",
    ),
    fact("batch_adaptive_share_of_best_low", FactKind::Score, "The least of the pairs."),
    fact("batch_adaptive_share_of_best_high", FactKind::Score, "The most of the pairs."),
    fact("batch_sizes_tried", FactKind::Text, "Numbers that the search tried, in their order."),
    fact(
        "batch_fixed_tokens_per_second",
        FactKind::Text,
        "Each fixed number of the sweep and its tokens a second, the median over rounds.",
    ),
    fact(
        "batch_backoffs",
        FactKind::Integer,
        "How often the search went back, or did not go on, for slower steps, late ones, or memory.",
    ),
    fact(
        "batch_longest_step_seconds",
        FactKind::Score,
        "The longest decode step of the search, as a mean over a stretch of the same sequences.",
    ),
    fact(
        "wave_sizes",
        FactKind::Text,
        "Sequences that ran together, wave after wave of the last measured run, where there was more than one wave.",
    ),
    fact(
        "fusion_nodes_before",
        FactKind::Integer,
        "Nodes of the decoder's graph before operators of this program took the place of some.",
    ),
    fact("fusion_nodes_after", FactKind::Integer, "Nodes after that."),
    fact("fusion_nodes_replaced", FactKind::Integer, "Nodes whose place they took."),
    fact(
        "fusion_operators",
        FactKind::Text,
        "Nodes of each operator of this program, e.g. `HeadNorm 36, SkipNorm 72, SwiGlu 36`.",
    ),
    fact(
        "compiled_nodes_before",
        FactKind::Integer,
        "Nodes of the decoder's graph before it was compiled ahead of time.",
    ),
    fact("compiled_nodes_after", FactKind::Integer, "Nodes of the graph as ONNX Runtime optimized and saved it."),
    fact(
        "compiled_prepacked_constants",
        FactKind::Integer,
        "Constants that lie beside the graph in the order of ONNX Runtime's kernels, to be mapped instead of made at each load.",
    ),
    fact("compiled_prepacked_bytes", FactKind::Integer, "Their bytes."),
    fact("compiled_bytes", FactKind::Integer, "Bytes of the compiled graph with all its constants, prepacked or not."),
    fact("compile_seconds", FactKind::Float, "Seconds in which the graph was compiled and written, once."),
    fact("surgery_layers_dropped", FactKind::Integer, "Layers that left the model."),
    fact("surgery_dropped_layers", FactKind::Text, "Their numbers, from 0, as the model had them."),
    fact(
        "surgery_layer_importance",
        FactKind::Text,
        "Of each layer of the model, 1 − the mean cosine similarity of the residual stream before and behind it.",
    ),
    fact("surgery_calibration", FactKind::Text, "What importance and use were measured over."),
    fact("surgery_calibration_tokens", FactKind::Integer, "Tokens of it; 0 where nothing was to be measured."),
    fact("surgery_experts_before", FactKind::Integer, "Routed experts of a layer."),
    fact("surgery_experts_kept", FactKind::Integer, "Those of them that stayed."),
    fact(
        "surgery_kept_choices_share",
        FactKind::Score,
        "Share of the routers' choices over the calibration tokens that fell on experts that stayed.",
    ),
    fact("surgery_tokens_before", FactKind::Integer, "Tokens of the vocabulary."),
    fact("surgery_tokens_kept", FactKind::Integer, "Those of them that stayed."),
    fact(
        "surgery_logits_selected",
        FactKind::Bool,
        "Whether the head got its choice of positions by the surgery; false where it had it.",
    ),
    fact("surgery_parameters_before", FactKind::Integer, "Weights of the model."),
    fact("surgery_parameters_after", FactKind::Integer, "Weights that are left."),
    fact("surgery_bytes_before", FactKind::Integer, "Bytes of the package's files."),
    fact("surgery_bytes_after", FactKind::Integer, "Bytes of the new package's files."),
    fact("simulated_devices", FactKind::Integer, "Devices that were simulated."),
    fact(
        "simulated_parallel",
        FactKind::Text,
        "How they share the model out: `pipeline`, some layers each, or `tensor`, some of each layer.",
    ),
    fact(
        "simulated_only",
        FactKind::Bool,
        "Whether no arm was run that way, so that the row's measured figures say nothing of it.",
    ),
    fact(
        "simulated_tokens_per_second",
        FactKind::Float,
        "Simulated: generated tokens ÷ time from the first request to the last token, each device being as fast as this \
         machine with the cell's threads.",
    ),
    fact("simulated_ttft_seconds", FactKind::Float, "Simulated: median over sequences of the time to the first token."),
    fact("simulated_speedup", FactKind::Float, "Simulated tokens a second ÷ those of one such device, as measured."),
    fact(
        "simulated_bubble_share",
        FactKind::Score,
        "Simulated: share of the devices' time in which they do not compute.",
    ),
    fact(
        "simulated_link_share",
        FactKind::Score,
        "Simulated: share of the time in which the busiest link is occupied.",
    ),
    fact(
        "simulated_border_bytes",
        FactKind::Integer,
        "Bytes over the busiest border in a decode step of one group; of tensor parallelism, of the hidden states that each \
         ring adds up.",
    ),
    fact(
        "simulation_link",
        FactKind::Text,
        "How the link of the real pipeline was limited: `namespace` by the kernel, `shaper` by whoever sends.",
    ),
    fact("simulation_predicted_tokens_per_second", FactKind::Float, "Predicted for two stages on this machine."),
    fact(
        "simulation_measured_tokens_per_second",
        FactKind::Float,
        "Measured with two processes: the median of three rounds of a prediction and a run.",
    ),
    fact(
        "simulation_error_percent",
        FactKind::Score,
        "(Predicted ÷ measured tokens a second − 1) × 100, of the medians.",
    ),
    fact("simulation_error_low_percent", FactKind::Score, "The same of the round in which it was least."),
    fact("simulation_error_high_percent", FactKind::Score, "The same of the round in which it was most."),
    fact(
        "simulation_predicted_ttft_seconds",
        FactKind::Float,
        "Predicted for two stages: median over sequences of the time to the first token.",
    ),
    fact("simulation_measured_ttft_seconds", FactKind::Float, "The same measured with two processes."),
    fact("simulation_ttft_error_percent", FactKind::Score, "(Predicted ÷ measured time to the first token − 1) × 100."),
    fact(
        "simulation_predicted_bubble_share",
        FactKind::Score,
        "Predicted for two stages: share of their time in which they do not compute.",
    ),
    fact("simulation_measured_bubble_share", FactKind::Score, "The same measured with two processes."),
    fact(
        "simulation_slowdown",
        FactKind::Float,
        "By how much a decode step of a stage takes longer while the other stage computes, the larger of the two: they share \
         this machine's memory.",
    ),
    fact(
        "simulation_hop_seconds",
        FactKind::Score,
        "What a message costs from one stage to the next where the link is not limited.",
    ),
    fact("stage_peak_bytes", FactKind::Integer, "Bytes that the largest stage's process holds once it is loaded."),
];
