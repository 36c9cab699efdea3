//! Changes of modules, graphs and datasets.

use std::collections::BTreeMap;

use super::{Area, Changes, names, sorted};
use crate::agreement::{Dataset, Graph, Module, ModuleRole, ScalarRange};
use crate::dataset::DatasetSpec;
use crate::reader::Scalar;

const OTHER_CODE: &str =
    "code that nobody has read yet meets the data; inspect it (`cloister module inspect`) and read its source";

pub(super) fn modules(out: &mut Changes, old: &[Module], new: &[Module]) {
    let (gone, fresh, both) = sorted(old, new, |one| one.name.as_str());
    for one in gone {
        let text = format!("the {} {:?} is gone", one.role.as_str(), one.name);
        out.say(Area::Code, text);
    }
    for one in fresh {
        let text = format!(
            "a new {} {:?} ({}), which may handle tensors by {:?}",
            one.role.as_str(),
            one.name,
            one.sha256.short(),
            one.tensor_access.as_str()
        );
        out.add(Area::Code, text, Some(OTHER_CODE));
    }
    for (before, after) in both {
        module(out, before, after);
    }
}

fn module(out: &mut Changes, old: &Module, new: &Module) {
    let Module {
        name,
        role,
        sha256,
        tensor_access,
        settings,
        scalars,
        reads,
        nodes,
    } = new;
    let what = |field: &str| format!("{field} of {name:?}");
    out.value(
        Area::Code,
        &what("role"),
        (&old.role.as_str(), &role.as_str()),
        Some(OTHER_CODE),
    );
    if old.sha256 != *sha256 {
        let text = format!(
            "the code of {name:?} changes from {} to {}",
            old.sha256.short(),
            sha256.short()
        );
        out.add(Area::Code, text, Some(OTHER_CODE));
    }
    let (before, after) = (old.tensor_access, *tensor_access);
    let widened = (after.may_read() && !before.may_read()) || (after.may_write() && !before.may_write());
    let concern = match (widened, role) {
        (true, ModuleRole::Trainer | ModuleRole::Transform) => {
            Some("a module that sees rows, or makes updates of its own, can carry rows out: read its source")
        }
        _ => None,
    };
    let access = (&before.as_str(), &after.as_str());
    out.value(Area::Code, &what("access to tensors"), access, concern);
    settings_changed(out, name, &old.settings, settings);
    scalars_changed(out, name, &old.scalars, scalars);
    let (gone, fresh, _) = sorted(&old.reads, reads, String::as_str);
    if !fresh.is_empty() {
        let text = format!("{name:?} may read {} besides", names(&fresh));
        out.add(
            Area::Code,
            text,
            Some("what a module reads it can let out by the scalars that it sets"),
        );
    }
    if !gone.is_empty() {
        out.say(Area::Code, format!("{name:?} may read {} no more", names(&gone)));
    }
    placed(out, Area::Code, name, (old.nodes.as_deref(), nodes.as_deref()));
}

fn settings_changed(out: &mut Changes, name: &str, old: &BTreeMap<String, Scalar>, new: &BTreeMap<String, Scalar>) {
    for (key, value) in new {
        match old.get(key) {
            None => out.say(Area::Code, format!("{name:?} gets the setting {key} = {value}")),
            Some(before) => out.value(Area::Code, &format!("{key} of {name:?}"), (before, value), None),
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        out.say(Area::Code, format!("the setting {key} of {name:?} is left out"));
    }
}

fn scalars_changed(
    out: &mut Changes,
    name: &str,
    old: &BTreeMap<String, ScalarRange>,
    new: &BTreeMap<String, ScalarRange>,
) {
    let wider = Some("a wider range lets a module say more to whoever sees what comes of it");
    for (key, range) in new {
        let (min, max) = (range.min, range.max);
        match old.get(key) {
            None => {
                let text = format!("{name:?} may set the scalar {key} from {min:?} to {max:?}");
                out.add(Area::Code, text, wider);
            }
            Some(before) if before != range => {
                let text = format!(
                    "{name:?} may set {key} from {min:?} to {max:?}, not from {:?} to {:?}",
                    before.min, before.max
                );
                let concern = wider.filter(|_| min < before.min || max > before.max);
                out.add(Area::Code, text, concern);
            }
            Some(_) => {}
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        out.say(Area::Code, format!("{name:?} may set the scalar {key} no more"));
    }
}

fn placed(out: &mut Changes, area: Area, name: &str, (old, new): (Option<&[String]>, Option<&[String]>)) {
    let said = |nodes: Option<&[String]>| nodes.map_or_else(|| "every node of its role".to_owned(), names);
    if old != new {
        out.say(area, format!("{name:?} runs on {}, not on {}", said(new), said(old)));
    }
}

pub(super) fn graphs(out: &mut Changes, old: &[Graph], new: &[Graph]) {
    let (gone, fresh, both) = sorted(old, new, |one| one.name.as_str());
    for one in gone {
        out.say(Area::Graphs, format!("the graph {:?} is gone", one.name));
    }
    for one in fresh {
        let text = format!("a new graph {:?} ({})", one.name, one.sha256.short());
        out.add(
            Area::Graphs,
            text,
            Some("look at what it computes of the rows (`cloister graph show`)"),
        );
    }
    for (before, after) in both {
        let Graph {
            name,
            sha256,
            batch,
            nodes,
        } = after;
        if before.sha256 != *sha256 {
            let text = format!(
                "the graph {name:?} changes from {} to {}",
                before.sha256.short(),
                sha256.short()
            );
            out.add(
                Area::Graphs,
                text,
                Some("look at what it computes of the rows now (`cloister graph show`)"),
            );
        }
        let fewer = (*batch < before.batch).then_some("gradients over fewer rows tell more of each");
        out.value(
            Area::Graphs,
            &format!("rows of a batch of {name:?}"),
            (&before.batch, batch),
            fewer,
        );
        placed(out, Area::Graphs, name, (before.nodes.as_deref(), nodes.as_deref()));
    }
}

pub(super) fn datasets(out: &mut Changes, old: &[Dataset], new: &[Dataset]) {
    let key = |one: &Dataset| (one.node.clone(), one.name().to_owned());
    let (gone, fresh, both) = sorted(old, new, key);
    for one in gone {
        out.say(Area::Data, format!("dataset {:?} of {} is gone", one.name(), one.node));
    }
    for one in fresh {
        let text = format!(
            "a new dataset {:?} of {} (commitment {})",
            one.name(),
            one.node,
            one.commitment.short()
        );
        out.say(Area::Data, text);
    }
    for (before, after) in both {
        let Dataset {
            node,
            commitment,
            rows,
            spec,
        } = after;
        let what = format!("dataset {:?} of {node}", spec.name);
        if before.commitment != *commitment {
            let text = format!(
                "{what} has other rows: {} becomes {}",
                before.commitment.short(),
                commitment.short()
            );
            out.say(Area::Data, text);
        }
        let said = |rows: Option<u64>| rows.map_or_else(|| "not told".to_owned(), |rows| rows.to_string());
        out.value(
            Area::Data,
            &format!("rows of {what}"),
            (&said(before.rows), &said(*rows)),
            None,
        );
        transforms(out, &what, &before.spec, spec);
        if before.spec.inputs != spec.inputs {
            let inputs = before
                .spec
                .inputs
                .iter()
                .filter(|(name, input)| spec.inputs.get(*name) != Some(input));
            let inputs = inputs.map(|(name, _)| name);
            let more = spec
                .inputs
                .keys()
                .filter(|name| !before.spec.inputs.contains_key(*name));
            let changed: Vec<_> = inputs.chain(more).collect();
            let text = format!(
                "other columns, or other values of them, feed {} of {what}",
                names(&changed)
            );
            out.add(
                Area::Data,
                text,
                Some("columns that were left out may be among them: compare the `inputs`"),
            );
        }
    }
}

fn transforms(out: &mut Changes, what: &str, old: &DatasetSpec, new: &DatasetSpec) {
    let damaged = (&old.damaged.as_str(), &new.damaged.as_str());
    out.value(Area::Data, &format!("damaged rows of {what}"), damaged, None);
    let words = |spec: &DatasetSpec| spec.slice.map_or_else(|| "all".to_owned(), |slice| slice.to_string());
    out.value(
        Area::Data,
        &format!("rows of the file of {what}"),
        (&words(old), &words(new)),
        None,
    );
    if old.transform == new.transform {
        return;
    }
    let text = match (&old.transform, &new.transform) {
        (_, Some(after)) => {
            let made: Vec<_> = after.makes.keys().collect();
            format!("the transform {:?} makes {} of {what}", after.module, names(&made))
        }
        (_, None) => format!("no transform stands between graphs and {what}"),
    };
    out.add(
        Area::Data,
        text,
        Some("what a transform makes is what updates tell about: read its source, and compare the `makes`"),
    );
}
