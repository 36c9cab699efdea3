//! A dataset's description on its way to the runner: TOML, which the policy's own strict reader takes apart there.

use std::fmt::Write;

use cloister_policy::DatasetSpec;

/// Writes the description so that [`DatasetSpec::parse`] gives the same one.
pub(crate) fn to_toml(spec: &DatasetSpec) -> String {
    let mut text = format!(
        "name = {}\ndamaged = {}\n",
        quoted(&spec.name),
        quoted(spec.damaged.as_str())
    );
    if let Some(slice) = spec.slice {
        // Writing to a string does not fail.
        let _ = writeln!(text, "slice = \"{slice}\"");
    }
    if let Some(transform) = &spec.transform {
        let _ = writeln!(text, "transform = {}", quoted(&transform.module));
    }
    for (name, made) in spec.transform.iter().flat_map(|transform| &transform.makes) {
        let (shape, dtype) = (&made.shape, made.dtype.name());
        let _ = writeln!(
            text,
            "[makes.{}]\nshape = {shape:?}\ndtype = {}",
            quoted(name),
            quoted(dtype)
        );
    }
    for (name, input) in &spec.inputs {
        let _ = writeln!(text, "[inputs.{}]", quoted(name));
        let columns: Vec<String> = input.columns.iter().map(|column| quoted(column)).collect();
        let scalar = input.shape.is_empty();
        let _ = if scalar {
            writeln!(text, "column = {}", columns.join(","))
        } else {
            writeln!(text, "columns = [{}]", columns.join(","))
        };
        if !scalar {
            let _ = writeln!(text, "shape = {:?}", input.shape);
        }
        let _ = writeln!(text, "dtype = \"{}\"", input.dtype.name());
        // `{:?}` writes the shortest text that reads back as the same f64. One value stands for all columns alike.
        for (key, values) in [("scale", &input.scale), ("offset", &input.offset)] {
            let same = values.iter().all(|value| value.to_bits() == values[0].to_bits());
            let _ = if same {
                writeln!(text, "{key} = {:?}", values[0])
            } else {
                writeln!(text, "{key} = {values:?}")
            };
        }
    }
    text
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for symbol in text.chars() {
        match symbol {
            '"' | '\\' => quoted.extend(['\\', symbol]),
            symbol if symbol.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(symbol));
            }
            symbol => quoted.push(symbol),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_comes_back_the_same() {
        for inputs in [
            "x = { columns = \"p0..p63\", shape = [1, 8, 8], scale = 0.0625 }\nlabels = { column = \"label\", dtype = \"i64\" }",
            "x = { columns = [\"a b\", \"c\\\"d\\\\\", \"ä..\\u0007\"], scale = [1, 1e-300, -2.5], offset = [0, -0.0, 3] }",
            "x = { columns = [\"a\"] }",
            "x = { column = \"a\", scale = 2, offset = 1e22 }",
            "x = { columns = \"p0..p3\", dtype = \"u8\" }\n[makes]\nx = { shape = [2, 1], dtype = \"i64\" }\ny = { shape = [] }",
        ] {
            let head = if inputs.contains("[makes]") {
                "transform = \"t\"\ndamaged = \"skip\"\nslice = \"3..70\"\n"
            } else {
                ""
            };
            let text = format!("name = \"train\"\n{head}[inputs]\n{inputs}\n");
            let Ok(spec) = DatasetSpec::parse(text.as_bytes(), "spec.toml") else {
                continue;
            };
            assert_eq!(
                DatasetSpec::parse(to_toml(&spec).as_bytes(), "again.toml").unwrap(),
                spec,
                "{}",
                to_toml(&spec)
            );
        }
    }
}
