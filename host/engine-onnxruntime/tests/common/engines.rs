use std::path::PathBuf;

use cloister_engine::Backend;
use cloister_engine::tract::Tract;

/// tract, ONNX Runtime out of the folder that `CLOISTER_ONNXRUNTIME_DIR` names, and OpenVINO if it is at hand.
pub fn backends() -> Vec<Box<dyn Backend>> {
    let dir = std::env::var_os("CLOISTER_ONNXRUNTIME_DIR").expect("`cargo xtask test --backends` sets it up and names it");
    let runtime = cloister_engine_onnxruntime::load(&PathBuf::from(dir)).unwrap();
    let mut backends: Vec<Box<dyn Backend>> = vec![Box::new(Tract::new()), Box::new(runtime)];
    if let Some(openvino) = super::openvino() {
        backends.push(Box::new(openvino));
    }
    backends
}
