use proptest::prelude::*;

use super::*;

fn model() -> TensorMap {
    let f32s = |count: usize| (0..count).map(|value| value as f32).collect::<Vec<_>>();
    TensorMap::from([
        ("a".to_owned(), Tensor::from_f32(&[3, 5], f32s(15)).unwrap()),
        ("b".to_owned(), Tensor::from_f32(&[0], vec![]).unwrap()),
        ("c".to_owned(), Tensor::from_i64(&[2], vec![-1, 7]).unwrap()),
        ("d".to_owned(), Tensor::from_f32(&[], vec![2.5]).unwrap()),
    ])
}

#[test]
fn tensors_come_back_in_place() {
    let shared = SharedTensors::copy_of(&model()).unwrap();
    assert_eq!(shared.to_map().unwrap(), model());
    let address = shared.to_map().unwrap()["c"].bytes().as_ptr() as u64;
    assert_eq!(address % ALIGNMENT_BYTES, 0);
    assert!(
        SharedTensors::copy_of(&TensorMap::new())
            .unwrap()
            .to_map()
            .unwrap()
            .is_empty()
    );
}

#[test]
fn tensors_in_sealed_memory_are_shared_in_place() {
    let shared = SharedTensors::copy_of(&model()).unwrap();
    let mut tensors = shared.to_map().unwrap();
    let again = SharedTensors::in_place(shared.blob(), &tensors).unwrap();
    assert!(again.layout().same_tensors(shared.layout()));
    assert_eq!(again.to_map().unwrap(), model());
    assert_eq!(
        again.to_map().unwrap()["c"].bytes().as_ptr(),
        tensors["c"].bytes().as_ptr()
    );
    assert!(
        SharedTensors::in_place(SharedTensors::copy_of(&model()).unwrap().blob(), &tensors).is_none(),
        "another memory"
    );
    let swapped = tensors["a"].clone();
    tensors.insert("z".to_owned(), swapped);
    assert!(
        SharedTensors::in_place(shared.blob(), &tensors).is_none(),
        "out of order"
    );
    tensors.remove("z");
    tensors.insert("d".to_owned(), Tensor::scalar_f32(1.0));
    assert!(
        SharedTensors::in_place(shared.blob(), &tensors).is_none(),
        "one lies elsewhere"
    );
}

fn refused(change: impl FnOnce(&mut WireLayout)) -> String {
    let shared = SharedTensors::copy_of(&model()).unwrap();
    let mut wire = shared.layout().to_wire();
    change(&mut wire);
    SharedTensors::from_wire(shared.blob().clone(), wire)
        .expect_err("the layout lies")
        .to_string()
}

#[test]
fn lying_layouts_are_refused() {
    assert!(refused(|wire| wire.slots[0].dims = vec![1 << 39]).contains("do not fit"));
    assert!(refused(|wire| wire.slots[0].dims = vec![u64::MAX, u64::MAX]).contains("shared tensor"));
    assert!(refused(|wire| wire.slots[0].dims = vec![1; 1000]).contains("shared tensor"));
    assert!(
        refused(|wire| wire.slots[2].offset = 0).contains("do not fit"),
        "overlapping"
    );
    assert!(
        refused(|wire| wire.slots[3].offset += 1).contains("do not fit"),
        "not aligned"
    );
    assert!(refused(|wire| wire.slots[3].offset = u64::MAX - 63).contains("do not fit"));
    assert!(refused(|wire| wire.slots.swap(0, 1)).contains("sorted"));
    assert!(refused(|wire| wire.slots[1].name = "a".to_owned()).contains("each stand once"));
    assert!(refused(|wire| wire.slots[1].name = "b".repeat(MAX_NAME_BYTES + 1)).contains("bytes, at most"));
    assert!(refused(|wire| wire.slots[1].dtype = "F128".to_owned()).contains("unknown dtype"));
    assert!(refused(|wire| wire.slots = vec![wire.slots[1].clone(); MAX_TENSORS + 1]).contains("at most"));
}

proptest! {
    #[test]
    fn a_buffer_takes_pieces_of_any_size(sizes in proptest::collection::vec(0_usize..40, 0..40)) {
        let sent: Vec<u8> = SharedTensors::copy_of(&model()).unwrap().pieces().flat_map(|piece| piece.to_vec()).collect();
        let mut buffer = SharedTensorBuffer::new(Arc::new(TensorLayout::of(&model()).unwrap()), 1 << 20).unwrap();
        let mut rest = &sent[..];
        for size in sizes {
            let (now, later) = rest.split_at(size.min(rest.len()));
            buffer.append(now).unwrap();
            rest = later;
        }
        if !rest.is_empty() {
            let early = SharedTensorBuffer::new(Arc::new(TensorLayout::of(&model()).unwrap()), 1 << 20).unwrap().finish();
            let refused = matches!(early, Err(SharedTensorsError::Length { .. }));
            prop_assert!(refused);
            buffer.append(rest).unwrap();
        }
        prop_assert!(buffer.append(b"x").is_err(), "one byte too many");
        prop_assert_eq!(buffer.finish().unwrap().to_map().unwrap(), model());
    }
}
