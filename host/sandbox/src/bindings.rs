//! The worlds of `wit/`, as wasmtime renders them. What the worlds share is rendered once.
#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    reason = "generated; documented in wit/"
)]

pub(crate) mod trainer {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "cloister:federation/trainer",
        imports: { default: trappable },
        with: {
            "wasi:nn/tensor.tensor": crate::label::GuestTensor,
            "wasi:nn/errors.error": crate::nn::NnError,
            "wasi:nn/graph.graph": crate::nn::NamedGraph,
            "wasi:nn/inference.graph-execution-context": crate::nn::ExecutionContext,
            "cloister:federation/dataset.batches": crate::dataset::Pass,
        },
    });
}

pub(crate) mod aggregator {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "cloister:federation/aggregator",
        imports: { default: trappable },
        with: {
            "cloister:federation/types": crate::bindings::trainer::cloister::federation::types,
            "cloister:federation/settings": crate::bindings::trainer::cloister::federation::settings,
            "cloister:federation/log": crate::bindings::trainer::cloister::federation::log,
            "cloister:federation/metrics": crate::bindings::trainer::cloister::federation::metrics,
            "cloister:federation/updates.update": crate::flat::Update,
        },
    });
}

pub(crate) mod transform {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "cloister:federation/transform",
        imports: { default: trappable },
        with: {
            "cloister:federation/types": crate::bindings::trainer::cloister::federation::types,
            "cloister:federation/settings": crate::bindings::trainer::cloister::federation::settings,
            "cloister:federation/log": crate::bindings::trainer::cloister::federation::log,
        },
    });
}
