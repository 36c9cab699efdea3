//! What engines compute in: f32 unless told otherwise, and never something else than what was said.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics says where, and a skipped one says so"
)]

mod common;

use cloister_engine::{CompileOptions, EngineError, Precision};
use cloister_graph::Optimizer;
use cloister_tensor::TensorMap;

use common::{BATCH, Training, backends, batch, distance, run, sample_models, trained};

const BF16: CompileOptions = CompileOptions {
    threads: None,
    precision: Precision::Bf16,
    pinning: false,
};

/// Whether the processor computes in bf16 (AVX-512 or AMX).
fn has_bf16() -> bool {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    info.contains("avx512_bf16") || info.contains("amx_bf16")
}

#[test]
fn bf16_is_refused_by_name_or_computes_coarser_gradients() {
    for (model_name, model) in sample_models() {
        let graph = trained(&model, Optimizer::None, BATCH, true).training;
        for backend in backends() {
            let name = backend.name().to_owned();
            let mut training = Training::new(backend.as_ref(), &graph, &model, 0.0);
            let inputs = training.inputs(&batch(&graph, 3));
            let gradients = |training: &mut Training| -> TensorMap {
                let outputs = run(training.compiled.as_mut(), &inputs, None).unwrap().into_iter();
                outputs.filter(|(name, _)| name.starts_with("grad/")).collect()
            };
            let exact = gradients(&mut training);
            match backend.compile(&graph, &BF16) {
                Ok(compiled) => {
                    assert!(name.starts_with("openvino") && has_bf16(), "{name} has bf16");
                    backend.can(&BF16).unwrap();
                    training.compiled = compiled;
                    let apart = distance(&gradients(&mut training), &exact);
                    eprintln!("{model_name} on {name}: gradients in bf16 are {apart:.1e} from those in f32");
                    assert!((1e-4..0.3).contains(&apart), "{model_name}: {apart}");
                    // And f32 is what it is beside it.
                    training.compiled = backend.compile(&graph, &CompileOptions::default()).unwrap();
                    assert_eq!(gradients(&mut training), exact);
                }
                Err(EngineError::Unsupported { backend: seen, .. }) => {
                    assert!(!name.starts_with("openvino"));
                    assert_eq!(seen, name);
                    let error = backend.can(&BF16).unwrap_err().to_string();
                    assert!(error.contains(&name) && error.contains("bf16"), "{error}");
                }
                Err(EngineError::Precision { seen, wanted, .. }) => {
                    assert!(name.starts_with("openvino") && !has_bf16(), "{seen} for {wanted}");
                }
                Err(error) => panic!("{name}: {error}"),
            }
        }
    }
}

#[test]
fn every_engine_computes_in_f32() {
    for backend in backends() {
        backend.can(&CompileOptions::default()).unwrap();
    }
}
