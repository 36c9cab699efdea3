//! What the person who runs an example wants otherwise than its plan says.

use std::path::PathBuf;

/// What the person who runs an example wants otherwise than its plan.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// Another mode: one of the plan's `[modes]`.
    pub mode: Option<String>,
    /// Another number of rounds.
    pub count: Option<u32>,
    /// The folder with the data.
    pub data: Option<PathBuf>,
}

/// The plan's table as a wish changes it. What a table of `[modes.MODE]` holds takes the place of keys of that name, whole.
pub fn applied(mut table: toml::Table, wish: &Wish) -> Result<toml::Table, String> {
    let usual = |table: &toml::Table| {
        let mode = table.get("rounds").and_then(|rounds| rounds.get("mode"));
        mode.and_then(toml::Value::as_str).unwrap_or("averaging").to_owned()
    };
    let own = usual(&table);
    let modes = table.remove("modes");
    if let Some(mode) = wish.mode.as_ref().filter(|mode| **mode != own) {
        let modes = modes.as_ref().and_then(toml::Value::as_table);
        let changes = modes.and_then(|modes| modes.get(mode)).and_then(toml::Value::as_table);
        let Some(changes) = changes else {
            let others = modes.into_iter().flat_map(toml::Table::keys);
            let known: Vec<&str> = std::iter::once(own.as_str())
                .chain(others.map(String::as_str))
                .collect();
            return Err(format!("it has no mode {mode:?}; it has {}", known.join(", ")));
        };
        for (section, keys) in changes {
            let into = table.entry(section).or_insert_with(|| toml::Table::new().into());
            match (into.as_table_mut(), keys.as_table()) {
                (Some(into), Some(keys)) => into.extend(keys.clone()),
                _ => {
                    return Err(format!(
                        "[modes.{mode}] {section}: a section of the plan and its keys are wanted"
                    ));
                }
            }
        }
    }
    let mut set = |section: &str, key: &str, value: toml::Value| {
        let section = table.entry(section).or_insert_with(|| toml::Table::new().into());
        if let Some(section) = section.as_table_mut() {
            section.insert(key.to_owned(), value);
        }
    };
    if let Some(mode) = &wish.mode {
        set("rounds", "mode", mode.as_str().into());
    }
    if let Some(count) = wish.count {
        set("rounds", "count", i64::from(count).into());
    }
    if let Some(folder) = &wish.data {
        set("data", "folders", vec![folder.display().to_string()].into());
    }
    Ok(table)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that panics says where")]
mod tests {
    use super::*;

    fn table() -> toml::Table {
        toml::from_str(
            "[rounds]\nmode = \"asynchronous\"\ncount = 7800\nseed = 1\n[training]\ntrainer = \"a\"\nsettings = { x = 1 }\n\
             [modes.averaging]\nrounds = { count = 20 }\ntraining = { settings = { y = 2 } }\nlimits = { call_s = 3 }\n",
        )
        .unwrap()
    }

    #[test]
    fn one_word_changes_what_the_plan_says_for_it() {
        let changed = |mode: Option<&str>, count| {
            let wish = Wish {
                mode: mode.map(str::to_owned),
                count,
                data: Some("/pictures".into()),
            };
            applied(table(), &wish)
        };
        let same = changed(Some("asynchronous"), None).unwrap();
        assert_eq!(same["rounds"]["count"].as_integer(), Some(7800));
        assert_eq!(same, changed(None, None).unwrap());
        assert_eq!(same["data"]["folders"].to_string(), "[\"/pictures\"]");
        let other = changed(Some("averaging"), None).unwrap();
        assert_eq!(
            (
                other["rounds"]["count"].as_integer(),
                other["rounds"]["seed"].as_integer()
            ),
            (Some(20), Some(1))
        );
        assert_eq!(other["rounds"]["mode"].as_str(), Some("averaging"));
        assert_eq!(other["training"]["settings"].to_string(), "{ y = 2 }", "whole");
        assert_eq!(other["limits"]["call_s"].as_integer(), Some(3));
        assert!(!other.contains_key("modes"));
        let few = changed(Some("averaging"), Some(4)).unwrap();
        assert_eq!(few["rounds"]["count"].as_integer(), Some(4));
        let error = changed(Some("hasty"), None).unwrap_err();
        assert!(error.contains("asynchronous, averaging"), "{error}");
    }
}
