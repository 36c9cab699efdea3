use cloister_engine::Backend;
use cloister_engine::tract::Tract;

pub fn backends() -> Vec<Box<dyn Backend>> {
    let mut backends: Vec<Box<dyn Backend>> = vec![Box::new(Tract::new())];
    if let Some(openvino) = super::openvino() {
        backends.push(Box::new(openvino));
    }
    backends
}
