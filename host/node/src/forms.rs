//! The file that holds which form the gradient of each convolution's weight takes: `cloister graph tune` writes it, graphs are made by it.

use std::collections::BTreeMap;
use std::path::Path;

use cloister_graph::{ConvLayer, WeightGradient};
use miette::Report;
use serde::Deserialize;

use crate::files;
use crate::ui::{Exit, failed};

/// Version of the file.
pub const VERSION: u32 = 1;
/// Most bytes of the file.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Forms {
    version: u32,
    weight_gradients: BTreeMap<String, String>,
}

/// Reads a choice that `cloister graph tune` has written, or a person.
pub fn read(path: &Path) -> Result<BTreeMap<ConvLayer, WeightGradient>, Report> {
    let bytes = files::read(path, MAX_BYTES)?;
    parse(&bytes).map_err(|problem| {
        failed(
            Exit::Usage,
            format!("{}: {problem}", path.display()),
            Some("`cloister graph tune` writes such a file".into()),
        )
    })
}

fn parse(bytes: &[u8]) -> Result<BTreeMap<ConvLayer, WeightGradient>, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let forms: Forms = toml::from_str(text).map_err(|error| error.to_string())?;
    if forms.version != VERSION {
        return Err(format!("version {}, {VERSION} is wanted", forms.version));
    }
    let mut chosen = BTreeMap::new();
    for (layer, form) in forms.weight_gradients {
        let layer: ConvLayer = layer.parse()?;
        let form: WeightGradient = form.parse().map_err(|problem| format!("{layer}: {problem}"))?;
        if !layer.takes(form) {
            return Err(format!("{layer}: such a layer can't take the form {form}"));
        }
        chosen.insert(layer, form);
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYER: &str = "8x3x6x6 kernel 4x3x3x3 strides 1x1 dilations 1x1 pads 1x1x1x1 groups 1";

    #[test]
    fn a_choice_reads_back_and_what_no_layer_can_take_is_refused() {
        let file = |line: &str| format!("version = 1\n[weight_gradients]\n{line}\n");
        let chosen = parse(file(&format!("\"{LAYER}\" = \"spatial/4\"")).as_bytes()).unwrap();
        let (layer, form) = chosen.first_key_value().unwrap();
        assert_eq!(
            (layer.to_string().as_str(), *form),
            (LAYER, WeightGradient::Spatial { parts: 4 })
        );
        for (line, said) in [
            (format!("\"{LAYER}\" = \"spatial/3\""), "can't take the form spatial/3"),
            (format!("\"{LAYER}\" = \"fast\""), "interleaved is wanted"),
            (format!("\"{LAYER} \" = \"conv\""), "is no layer"),
            ("\"8x3x6x6 kernel 4x2x3x3\" = \"conv\"".to_owned(), "is no layer"),
            (
                format!(
                    "\"{}\" = \"conv\"",
                    LAYER.replace("8x3x6x6", "8x3x99999999999999999999x6")
                ),
                "is no layer",
            ),
            (
                format!("\"{}\" = \"conv\"", LAYER.replace("4x3x3x3", "4x2x3x3")),
                "is no layer",
            ),
        ] {
            let problem = parse(file(&line).as_bytes()).unwrap_err();
            assert!(problem.contains(said), "{problem}");
        }
        assert!(
            parse(b"version = 2\n[weight_gradients]\n")
                .unwrap_err()
                .contains("version 2")
        );
        assert!(parse(b"version = 1\nmore = 1\n[weight_gradients]\n").is_err());
    }
}
