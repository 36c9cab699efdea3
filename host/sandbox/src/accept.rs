//! Whether the host takes what a trainer gives.

use std::collections::BTreeSet;

use cloister_tensor::{Tensor, TensorMap};

use crate::error::{ModuleErrorKind, Refusal, bounded};
use crate::label::{GuestTensor, Label};
use crate::{TensorAccess, UpdateKind};

/// What an update is measured against.
pub(crate) struct Wanted<'a> {
    /// The round's model.
    pub(crate) model: &'a TensorMap,
    /// Names among it that are running statistics.
    pub(crate) statistics: &'a BTreeSet<String>,
    /// Names that a graph of the policy computes: the others are frozen and stay as they are.
    pub(crate) trained: &'a BTreeSet<String>,
    /// What the update has to hold.
    pub(crate) update: UpdateKind,
    /// The module's grant.
    pub(crate) access: TensorAccess,
    /// Rows that the host counted.
    pub(crate) rows: u64,
}

/// The update, if every tensor of the model is there once, with its own label, shape and type, made by a graph of the policy
/// (or unchanged where it is frozen), and finite.
///
/// An update of gradients leaves out what is frozen: zeros stand in the place of a frozen parameter's gradient, the round's own
/// value in that of a frozen statistic.
pub(crate) fn update(given: Vec<(String, GuestTensor)>, wanted: &Wanted<'_>) -> Result<TensorMap, Refusal> {
    let refuse = |kind, message: String| Err(Refusal::new(kind, message));
    let moved = |name: &String| !wanted.statistics.contains(name);
    if !wanted.access.write && !wanted.trained.iter().any(moved) {
        let output = match wanted.update {
            UpdateKind::Model => "next/NAME",
            UpdateKind::Gradient => "grad/NAME",
        };
        let message = format!(
            "no graph that the policy gives the module has an output `{output}`, which the update is to hold; `cloister graph \
             train` makes one, for gradients with `--optimizer none`"
        );
        return refuse(ModuleErrorKind::NoUpdate, message);
    }
    if given.is_empty() {
        return refuse(ModuleErrorKind::NoUpdate, "the module gave no tensor".to_owned());
    }
    let mut tensors = TensorMap::new();
    for (name, held) in given {
        let Some(like) = wanted.model.get(&name) else {
            let message = format!(
                "the update holds `{}`, which the model does not have",
                bounded(&name, 256)
            );
            return refuse(ModuleErrorKind::UnknownTensor, message);
        };
        fits(&name, &held.tensor, like)?;
        origin(&name, &held, wanted)?;
        if let Some(at) = held.tensor.first_not_finite() {
            let message = format!("the update's `{name}` is not finite, first at element {at}; the training diverged");
            return refuse(ModuleErrorKind::NotFinite, message);
        }
        if tensors.insert(name.clone(), held.tensor).is_some() {
            return refuse(
                ModuleErrorKind::DuplicateTensor,
                format!("the update holds `{name}` twice"),
            );
        }
    }
    if wanted.update == UpdateKind::Gradient {
        for (name, own) in wanted.model {
            if !wanted.trained.contains(name) && !tensors.contains_key(name) {
                tensors.insert(name.clone(), wanted.left_out(name, own));
            }
        }
    }
    if let Some(name) = wanted.model.keys().find(|name| !tensors.contains_key(*name)) {
        let message = format!(
            "the update lacks `{name}`: {} of {} tensors are there",
            tensors.len(),
            wanted.model.len()
        );
        return refuse(ModuleErrorKind::MissingTensor, message);
    }
    if wanted.rows == 0 {
        let message = "the module trained on no row: no batch went through a training graph".to_owned();
        return refuse(ModuleErrorKind::NoUpdate, message);
    }
    Ok(tensors)
}

/// Shape and type are the model's.
pub(crate) fn fits(name: &str, seen: &Tensor, like: &Tensor) -> Result<(), Refusal> {
    if seen.dtype() == like.dtype() && seen.shape() == like.shape() {
        return Ok(());
    }
    let message = format!(
        "`{name}`: seen {} {:?}, wanted {} {:?}",
        seen.dtype().name(),
        seen.shape().dims(),
        like.dtype().name(),
        like.shape().dims()
    );
    Err(Refusal::new(ModuleErrorKind::WrongShape, message))
}

impl Wanted<'_> {
    /// The label of what stands under this name in the update.
    fn own(&self, name: &str) -> Label {
        let name = name.to_owned();
        match self.update {
            _ if self.statistics.contains(&name) => Label::Statistic(name),
            UpdateKind::Model => Label::Parameter(name),
            UpdateKind::Gradient => Label::Gradient(name),
        }
    }

    /// What stands for a tensor that no graph computes, in an update of gradients.
    fn left_out(&self, name: &str, own: &Tensor) -> Tensor {
        if self.statistics.contains(name) {
            own.clone()
        } else {
            Tensor::zeros(own.dtype(), own.shape().clone())
        }
    }
}

fn origin(name: &str, held: &GuestTensor, wanted: &Wanted<'_>) -> Result<(), Refusal> {
    let own = wanted.own(name);
    // `write` lifts the rule of origin for what the module made, never for rows or for other tensors' outputs.
    if held.label == Label::Made && wanted.access.write {
        return Ok(());
    }
    if held.label != own {
        let message = format!(
            "the update gives {} as {own}: wanted what a graph of the policy computes for it",
            held.label
        );
        return Err(Refusal::new(ModuleErrorKind::Denied, message));
    }
    if !held.computed && wanted.trained.contains(name) {
        let message = format!("the update gives {own} as it was: wanted what a graph of the policy computes for it");
        return Err(Refusal::new(ModuleErrorKind::NoUpdate, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::budget::Budget;

    fn held(value: f32, label: Label, computed: bool) -> GuestTensor {
        let charge = Budget::new(100).charge(4, "a test").unwrap();
        GuestTensor {
            tensor: Tensor::scalar_f32(value),
            label,
            computed,
            _charge: charge,
        }
    }

    fn judge(given: Vec<(&str, GuestTensor)>, access: TensorAccess, rows: u64) -> Result<TensorMap, Refusal> {
        let model = TensorMap::from([
            ("a".into(), Tensor::scalar_f32(1.0)),
            ("b".into(), Tensor::scalar_f32(2.0)),
        ]);
        let (statistics, trained) = (BTreeSet::new(), BTreeSet::from(["a".to_owned()]));
        let wanted = Wanted {
            model: &model,
            statistics: &statistics,
            trained: &trained,
            update: UpdateKind::Model,
            access,
            rows,
        };
        collected(given, &wanted)
    }

    /// A model of a trained and a frozen parameter, and of a trained and a frozen statistic.
    fn judge_gradients(given: Vec<(&str, GuestTensor)>, access: TensorAccess) -> Result<TensorMap, Refusal> {
        let names = |names: [&str; 2]| BTreeSet::from(names.map(str::to_owned));
        let model = ["a", "frozen", "mean", "still"].map(|name| (name.to_owned(), Tensor::scalar_f32(7.0)));
        let (statistics, trained) = (names(["mean", "still"]), names(["a", "mean"]));
        let wanted = Wanted {
            model: &TensorMap::from(model),
            statistics: &statistics,
            trained: &trained,
            update: UpdateKind::Gradient,
            access,
            rows: 3,
        };
        collected(given, &wanted)
    }

    fn collected(given: Vec<(&str, GuestTensor)>, wanted: &Wanted<'_>) -> Result<TensorMap, Refusal> {
        update(
            given
                .into_iter()
                .map(|(name, tensor)| (name.to_owned(), tensor))
                .collect(),
            wanted,
        )
    }

    fn parameter(name: &str) -> Label {
        Label::Parameter(name.to_owned())
    }

    #[test]
    fn computed_and_frozen_tensors_are_taken() {
        let given = vec![
            ("a", held(1.5, parameter("a"), true)),
            ("b", held(2.0, parameter("b"), false)),
        ];
        assert_eq!(judge(given, TensorAccess::HANDLES, 3).unwrap().len(), 2);
    }

    #[test]
    fn everything_else_is_refused() {
        let good = || ("b", held(2.0, parameter("b"), false));
        let rows = Label::Data {
            dataset: Arc::from("train"),
            input: "a".into(),
        };
        let write = TensorAccess {
            read: true,
            write: true,
        };
        for (given, access, rows, kind) in [
            (vec![], TensorAccess::HANDLES, 3, ModuleErrorKind::NoUpdate),
            (vec![good()], TensorAccess::HANDLES, 3, ModuleErrorKind::MissingTensor),
            (
                vec![("c", held(1.0, parameter("c"), true))],
                TensorAccess::HANDLES,
                3,
                ModuleErrorKind::UnknownTensor,
            ),
            (
                vec![good(), good()],
                TensorAccess::HANDLES,
                3,
                ModuleErrorKind::DuplicateTensor,
            ),
            (
                vec![("a", held(1.0, parameter("a"), false)), good()],
                TensorAccess::HANDLES,
                3,
                ModuleErrorKind::NoUpdate,
            ),
            (
                vec![("a", held(1.0, parameter("b"), true)), good()],
                TensorAccess::HANDLES,
                3,
                ModuleErrorKind::Denied,
            ),
            (
                vec![("a", held(1.0, rows.clone(), false)), good()],
                TensorAccess::HANDLES,
                3,
                ModuleErrorKind::Denied,
            ),
            (
                vec![("a", held(1.0, rows, false)), good()],
                write,
                3,
                ModuleErrorKind::Denied,
            ),
            (
                vec![("a", held(1.0, Label::Made, false)), good()],
                TensorAccess::HANDLES,
                3,
                ModuleErrorKind::Denied,
            ),
            (
                vec![("a", held(f32::NAN, parameter("a"), true)), good()],
                TensorAccess::HANDLES,
                3,
                ModuleErrorKind::NotFinite,
            ),
            (
                vec![("a", held(f32::INFINITY, Label::Made, false)), good()],
                write,
                3,
                ModuleErrorKind::NotFinite,
            ),
            (
                vec![("a", held(1.5, parameter("a"), true)), good()],
                TensorAccess::HANDLES,
                0,
                ModuleErrorKind::NoUpdate,
            ),
        ] {
            assert_eq!(judge(given, access, rows).unwrap_err().kind, kind);
        }
        assert!(judge(vec![("a", held(1.0, Label::Made, false)), good()], write, 3).is_ok());
    }

    fn gradient(name: &str, value: f32) -> GuestTensor {
        held(value, Label::Gradient(name.to_owned()), true)
    }

    fn statistic(name: &str, value: f32) -> GuestTensor {
        held(value, Label::Statistic(name.to_owned()), true)
    }

    #[test]
    fn gradients_and_statistics_are_taken_and_what_is_frozen_is_filled_in() {
        let given = vec![("a", gradient("a", 0.5)), ("mean", statistic("mean", 0.25))];
        let seen = judge_gradients(given, TensorAccess::HANDLES).unwrap();
        let value = |name: &str| seen[name].first_f64().unwrap();
        assert_eq!(["a", "frozen", "mean", "still"].map(value), [0.5, 0.0, 0.25, 7.0]);
    }

    #[test]
    fn what_is_no_gradient_is_refused_where_one_is_wanted() {
        let mean = || ("mean", statistic("mean", 0.25));
        let rows = Label::Data {
            dataset: Arc::from("train"),
            input: "a".into(),
        };
        let write = TensorAccess {
            read: true,
            write: true,
        };
        for access in [TensorAccess::HANDLES, write] {
            for (given, kind) in [
                // A parameter, trained or not, another's gradient, rows, a loss.
                (
                    vec![("a", held(1.0, parameter("a"), true)), mean()],
                    ModuleErrorKind::Denied,
                ),
                (
                    vec![("a", held(1.0, parameter("a"), false)), mean()],
                    ModuleErrorKind::Denied,
                ),
                (vec![("a", gradient("b", 1.0)), mean()], ModuleErrorKind::Denied),
                (
                    vec![("a", held(1.0, rows.clone(), false)), mean()],
                    ModuleErrorKind::Denied,
                ),
                (
                    vec![
                        ("a", gradient("a", 1.0)),
                        mean(),
                        ("frozen", held(1.0, parameter("frozen"), false)),
                    ],
                    ModuleErrorKind::Denied,
                ),
                // A gradient in the place of a statistic, and one that no graph moved.
                (
                    vec![("a", gradient("a", 1.0)), ("mean", gradient("a", 1.0))],
                    ModuleErrorKind::Denied,
                ),
                (
                    vec![
                        ("a", gradient("a", 1.0)),
                        ("mean", held(7.0, Label::Statistic("mean".to_owned()), false)),
                    ],
                    ModuleErrorKind::NoUpdate,
                ),
                (vec![("a", gradient("a", f32::NAN)), mean()], ModuleErrorKind::NotFinite),
                (
                    vec![("a", gradient("a", 1.0)), ("a", gradient("a", 1.0)), mean()],
                    ModuleErrorKind::DuplicateTensor,
                ),
                (vec![mean()], ModuleErrorKind::MissingTensor),
                (vec![], ModuleErrorKind::NoUpdate),
            ] {
                assert_eq!(judge_gradients(given, access).unwrap_err().kind, kind);
            }
        }
        let made = || vec![("a", held(1.0, Label::Made, false)), mean()];
        assert!(judge_gradients(made(), write).is_ok());
        assert_eq!(
            judge_gradients(made(), TensorAccess::HANDLES).unwrap_err().kind,
            ModuleErrorKind::Denied
        );
        // Where the model itself is wanted, a gradient is no parameter.
        let given = vec![("a", gradient("a", 1.0)), ("b", held(2.0, parameter("b"), false))];
        assert_eq!(judge(given, write, 3).unwrap_err().kind, ModuleErrorKind::Denied);
    }
}
