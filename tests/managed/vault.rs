//! The aggregator's vault between its operator and the manager's counter, and its key rotated.

use std::path::Path;

use super::house::{House, PARTICIPANTS};

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[test]
fn an_older_vault_and_one_written_elsewhere_are_refused_and_a_rotated_key_seals_all_anew() {
    let house = House::new();
    let (manager, address) = house.manager("127.0.0.1:0");
    assert_eq!(
        house.recover(&address, "--kept OUT/kept.mark --without-nodes"),
        "running"
    );
    manager.wait_for("in_force");
    let file = house.node_file("aggregator", &address, |text| text);
    let export = |to: &str| {
        format!(
            "vault export --config {} --to institute --recipient OUT/recipients/institute.recipient --out OUT/{to}",
            file.display()
        )
    };
    let vault = house.folder.join("nodes/aggregator/vault");
    let older = house.folder.join("older");
    let key = "--key-file OUT/participants/vault.key";
    let put = || {
        let run = house.run(&format!(
            "vault put OUT/nodes/aggregator/vault note --from OUT/policy.toml {key}"
        ));
        assert_eq!(run.code, 0, "{}", run.stderr);
    };

    copy(&vault, &older);
    // Ahead by the one commit that can be on its way: it is confirmed, and from then on the copy is an older one.
    put();
    let run = house.run(&export("first.export"));
    assert_eq!(run.code, 0, "{}", run.stderr);
    let newest = house.folder.join("newest");
    copy(&vault, &newest);
    copy(&older, &vault);
    house.refused(&export("older.export"), 1, "was rolled back");
    // Two commits that the manager never heard of were not made by a node that waits for its counter.
    copy(&newest, &vault);
    put();
    put();
    house.refused(&export("ahead.export"), 1, "on its way");
    copy(&newest, &vault);

    // The owner puts another key: with the node's next start everything is sealed under it.
    let run = house.run("vault keygen OUT/participants/second.key");
    assert_eq!(run.code, 0, "{}", run.stderr);
    let owner = House::as_one(&address, PARTICIPANTS[3]);
    let run = house.run(&format!(
        "manager secrets put vault-key --from OUT/participants/second.key --vault aggregator {owner}"
    ));
    assert_eq!(run.code, 0, "{}", run.stderr);
    let run = house.run(&export("second.export"));
    assert_eq!(run.code, 0, "{}", run.stderr);
    house.refused(
        &format!("vault ls OUT/nodes/aggregator/vault {key}"),
        1,
        "does not open with this key",
    );
    let run = house.run("vault verify OUT/nodes/aggregator/vault --key-file OUT/participants/second.key");
    assert_eq!(run.code, 0, "{}", run.stderr);

    // What was exported opens for the one that it is for.
    let unseal = |name: &str, to: &str| {
        format!(
            "unseal OUT/second.export --policy OUT/policy.toml --participant {name} --participant-key OUT/participants/{name}.key --out OUT/{to}"
        )
    };
    house.refused(&unseal("north", "stolen"), 4, "it is for participant/institute");
    house.refused(
        &unseal("institute", "stolen").replace("participants/institute", "participants/north"),
        1,
        "sealed to another key",
    );
    let run = house.run(&unseal("institute", "opened"));
    assert_eq!(run.code, 0, "{}", run.stderr);
}
