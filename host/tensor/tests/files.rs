//! Files of tensors: what is written reads back, and what is hostile is refused.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics says where, and a skipped one says so"
)]

use std::collections::BTreeMap;
use std::io::{Cursor, Write};

use bytes::Bytes;
use cloister_tensor::{Dtype, ReadLimits, Shape, Tensor, TensorError, TensorMap, npz, safetensors};
use proptest::prelude::*;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

fn small() -> ReadLimits {
    ReadLimits {
        max_bytes: 1 << 20,
        max_tensors: 16,
        max_header_bytes: 1 << 12,
    }
}

fn safetensors_file(header: &str, data: &[u8]) -> Bytes {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file.into()
}

fn npz_file(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, data) in entries {
        archive
            .start_file(*name, SimpleFileOptions::default().compression_method(method))
            .unwrap();
        archive.write_all(data).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let mut array = b"\x93NUMPY\x01\x00".to_vec();
    array.extend((header.len() as u16).to_le_bytes());
    array.extend(header.as_bytes());
    array.extend(data);
    array
}

fn all_types() -> TensorMap {
    let mut tensors = TensorMap::new();
    for dtype in Dtype::ALL {
        for dims in [&[][..], &[3], &[2, 2], &[0, 4]] {
            tensors.insert(
                format!("{dtype}/{dims:?}"),
                Tensor::zeros(dtype, Shape::new(dims).unwrap()),
            );
        }
    }
    tensors
}

#[test]
fn safetensors_keeps_every_type_without_copies() {
    let metadata = BTreeMap::from([
        ("cloister.round".to_owned(), "3".to_owned()),
        ("é".to_owned(), "\"\n".to_owned()),
    ]);
    let file = Bytes::from(safetensors::write(&all_types(), &metadata).unwrap());
    let read = safetensors::read(file.clone(), &ReadLimits::default()).unwrap();
    assert_eq!(read, all_types());
    assert_eq!(safetensors::metadata(&file, &ReadLimits::default()).unwrap(), metadata);
    let range = file.as_ptr_range();
    assert!(
        read.values()
            .all(|tensor| tensor.bytes().is_empty() || range.contains(&tensor.bytes().as_ptr()))
    );
}

#[test]
fn safetensors_is_what_the_reference_reads() {
    let tensors = TensorMap::from([("w".to_owned(), Tensor::from_f32(&[2], vec![1.0, 2.0]).unwrap())]);
    let file = safetensors::write(&tensors, &BTreeMap::new()).unwrap();
    let header = "{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}";
    assert_eq!(std::str::from_utf8(&file[8..8 + header.len()]).unwrap(), header);
    assert_eq!(file[file.len() - 8..], [0, 0, 128, 63, 0, 0, 0, 64]);
}

#[test]
fn hostile_safetensors_are_refused() {
    let entry = |shape: &str, offsets: &str| {
        safetensors_file(
            &format!(r#"{{"w":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#),
            &[0; 8],
        )
    };
    assert!(safetensors::read(entry("[2]", "[0,8]"), &small()).is_ok());
    let long_name = format!(
        r#"{{"{}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}"#,
        "n".repeat(513)
    );
    let many: Vec<String> = (0..17)
        .map(|at| format!(r#""{at}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#))
        .collect();
    for (what, file) in [
        ("empty", Bytes::new()),
        ("short", Bytes::from_static(&[1, 2, 3])),
        (
            "header length beyond the limit",
            Bytes::from(u64::MAX.to_le_bytes().to_vec()),
        ),
        ("header beyond the file", Bytes::from(1000u64.to_le_bytes().to_vec())),
        ("no JSON", safetensors_file("{{{{", &[])),
        ("not text", Bytes::from([&4u64.to_le_bytes()[..], &[0xff; 4]].concat())),
        ("too short for the shape", entry("[3]", "[0,8]")),
        ("too long for the shape", entry("[1]", "[0,8]")),
        ("beyond the file", entry("[4]", "[0,16]")),
        ("backwards", entry("[2]", "[8,0]")),
        ("hole", entry("[1]", "[4,8]")),
        ("negative", entry("[-2]", "[0,8]")),
        ("overflow", entry("[4611686018427387906]", "[0,8]")),
        ("overflowing product", entry("[4294967296,4294967296,2]", "[0,8]")),
        ("rank", entry("[1,1,1,1,1,1,1,1,2]", "[0,8]")),
        (
            "type",
            safetensors_file(r#"{"w":{"dtype":"I8","shape":[8],"data_offsets":[0,8]}}"#, &[0; 8]),
        ),
        (
            "boolean",
            safetensors_file(r#"{"w":{"dtype":"BOOL","shape":[8],"data_offsets":[0,8]}}"#, &[2; 8]),
        ),
        ("name", safetensors_file(&long_name, &[0; 8])),
        (
            "empty name",
            safetensors_file(r#"{"":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, &[0; 8]),
        ),
        ("too many", safetensors_file(&format!("{{{}}}", many.join(",")), &[])),
        ("two of one name", {
            let one = r#""w":{"dtype":"F32","shape":[1],"data_offsets":"#;
            safetensors_file(&format!("{{{one}[0,4]}},{one}[4,8]}}}}"), &[0; 8])
        }),
        ("trailing", entry("[1]", "[0,4]")),
        ("too big", {
            let header = r#"{"w":{"dtype":"U8","shape":[1048577],"data_offsets":[0,1048577]}}"#;
            safetensors_file(header, &vec![0; 1_048_577])
        }),
    ] {
        assert!(safetensors::read(file, &small()).is_err(), "{what} was accepted");
    }
}

#[test]
fn npz_keeps_every_type_but_bf16() {
    let mut tensors = all_types();
    assert!(matches!(npz::write(&tensors), Err(TensorError::Format { .. })));
    tensors.retain(|_, tensor| tensor.dtype() != Dtype::Bf16);
    let file = npz::write(&tensors).unwrap();
    assert_eq!(
        npz::read(&file, &small()).unwrap_err().to_string(),
        "npz: tensors: 28, and at most 16 are allowed here"
    );
    assert_eq!(npz::read(&file, &ReadLimits::default()).unwrap(), tensors);
    assert_eq!(
        npz::write(&tensors).unwrap(),
        file,
        "the bytes depend on the tensors alone"
    );
}

#[test]
fn packed_npz_reads() {
    let array = npy(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n",
        &[0, 0, 128, 63, 0, 0, 0, 64],
    );
    let file = npz_file(&[("x.npy", &array)], CompressionMethod::Deflated);
    let read = npz::read(&file, &small()).unwrap();
    assert_eq!(read["x"], Tensor::from_f32(&[2], vec![1.0, 2.0]).unwrap());
}

#[test]
fn hostile_npz_are_refused() {
    let good = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n", &[0; 8]);
    let stored = |entries: &[(&str, &[u8])]| npz_file(entries, CompressionMethod::Stored);
    assert!(npz::read(&stored(&[("x.npy", &good)]), &small()).is_ok());
    let bomb = npy(
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1048577,), }\n",
        &vec![0; 1_048_577],
    );
    let liar = npy(
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1048576,), }\n",
        &[0; 16],
    );
    let long = [good.clone(), vec![0]].concat();
    let pickle = npy(
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n",
        b"\x80\x04N.",
    );
    let mut flipped = stored(&[("x.npy", &good)]);
    let array_at = flipped.windows(6).position(|six| six == b"\x93NUMPY").unwrap();
    let data_at = array_at + good.len() - 1;
    flipped[data_at] ^= 1;
    let mut cut = stored(&[("x.npy", &good)]);
    cut.truncate(cut.len() - 10);
    for (what, file) in [
        ("empty", Vec::new()),
        ("no archive", b"PK\x03\x04 and nothing else".to_vec()),
        ("bomb", npz_file(&[("x.npy", &bomb)], CompressionMethod::Deflated)),
        ("promise", stored(&[("x.npy", &liar)])),
        (
            "packed promise",
            npz_file(&[("x.npy", &liar)], CompressionMethod::Deflated),
        ),
        ("cut data", stored(&[("x.npy", &good[..good.len() - 1])])),
        ("long data", stored(&[("x.npy", &long)])),
        ("pickle", stored(&[("x.npy", &pickle)])),
        ("no array", stored(&[("x.npy", b"hello world")])),
        ("one name twice", stored(&[("x.npy", &good), ("x", &good)])),
        ("flipped bit", flipped),
        ("cut", cut),
        ("empty name", stored(&[(".npy", &good)])),
    ] {
        assert!(npz::read(&file, &small()).is_err(), "{what} was accepted");
    }
}

fn tensors() -> impl Strategy<Value = TensorMap> {
    let tensor = (
        prop::sample::select(&Dtype::ALL[..]),
        prop::collection::vec(0usize..4, 0..4),
        any::<u64>(),
    );
    let tensor = tensor.prop_map(|(dtype, dims, seed)| {
        let shape = Shape::new(&dims).unwrap();
        let length = shape.elements() * dtype.size_bytes();
        let byte = |at: usize| (seed.wrapping_mul(at as u64 + 1) >> 32) as u8;
        let bytes: Vec<u8> = (0..length)
            .map(|at| if dtype == Dtype::Bool { byte(at) & 1 } else { byte(at) })
            .collect();
        Tensor::new(dtype, shape, bytes.into()).unwrap()
    });
    prop::collection::btree_map("[a-z./é\"\\\\]{1,12}", tensor, 0..6)
}

proptest! {
    #[test]
    fn safetensors_round_trip(tensors in tensors()) {
        let file = safetensors::write(&tensors, &BTreeMap::new()).unwrap();
        prop_assert_eq!(safetensors::read(file.into(), &ReadLimits::default()).unwrap(), tensors);
    }

    #[test]
    fn npz_round_trip(mut tensors in tensors()) {
        tensors.retain(|_, tensor| tensor.dtype() != Dtype::Bf16);
        let file = npz::write(&tensors).unwrap();
        prop_assert_eq!(npz::read(&file, &ReadLimits::default()).unwrap(), tensors);
    }

    /// Nothing that changes a file makes a reader panic or go beyond its limits.
    #[test]
    fn damaged_files_never_panic(tensors in tensors(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        let mut plain = safetensors::write(&tensors, &BTreeMap::new()).unwrap();
        let mut packed = npz::write(&tensors.into_iter().filter(|(_, t)| t.dtype() != Dtype::Bf16).collect()).unwrap();
        for file in [&mut plain, &mut packed] {
            let at = at.index(file.len());
            if cut { file.truncate(at) } else { file[at] = byte }
        }
        let _ = safetensors::read(plain.into(), &small());
        let _ = npz::read(&packed, &small());
    }

    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = npz::read(&noise, &small());
        let _ = safetensors::read(noise.into(), &small());
    }
}
