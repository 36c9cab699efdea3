//! A policy that follows another while nodes run.

use super::house::{House, Node, PARTICIPANTS};

#[test]
fn a_successor_takes_effect_by_the_manager_nodes_on_the_old_one_are_told_and_who_signs_two_is_named() {
    let house = House::new();
    let (manager, address) = house.manager("127.0.0.1:0");
    assert_eq!(
        house.recover(&address, "--kept OUT/kept.mark --without-nodes"),
        "running"
    );
    manager.wait_for("in_force");
    let file = house.node_file("hospital-north", &address, |text| text);
    let mut worker = Node::start("worker", &file);
    while worker.wait_for("measured")["state"] != "member" {}

    let founding = house.told["agreed"]["policy"].as_str().unwrap();
    let text = std::fs::read_to_string(house.folder.join("policy.toml")).unwrap();
    let follows = format!("version = 2\npredecessor = \"{founding}\"");
    let text = text.replacen("version = 1", &follows, 1);
    for (name, deadline) in [("second", "deadline_s = 61"), ("other", "deadline_s = 62")] {
        let text = text.replacen("deadline_s = 60", deadline, 1);
        std::fs::write(house.folder.join(format!("{name}.toml")), text).unwrap();
    }
    let sign = |policy: &str, name: &str| {
        let run = house.run(&format!(
            "policy sign OUT/{policy}.toml --key OUT/participants/{name}.key --participant {name} --predecessor OUT/policy.toml"
        ));
        assert_eq!(run.code, 0, "{}", run.stderr);
    };
    let publish = |policy: &str, judged: &str| {
        house.run(&format!(
            "policy publish OUT/{policy}.toml {} -o json",
            House::at(&address, judged)
        ))
    };
    sign("second", "north");
    let run = publish("second", "policy.toml");
    assert_eq!(run.code, 4, "three are missing: {}", run.stderr);
    assert_eq!(run.json().unwrap()["missing"].as_array().unwrap().len(), 3);
    // A second successor of the same policy under the same hand.
    sign("other", "north");
    assert_eq!(publish("other", "policy.toml").code, 4);
    let status = house.until(&address, |status| status["phase"] == "running");
    assert!(status["equivocations"].to_string().contains("north"), "{status}");

    for name in &PARTICIPANTS[1..] {
        sign("second", name);
    }
    let run = publish("second", "policy.toml");
    assert_eq!(run.code, 0, "{}", run.stderr);
    while manager.wait_for("in_force")["version"] != 2 {}
    // The node that runs under the old one is told by its refused session, and ends.
    assert_eq!(worker.ended(), 4);
    let again = Node::start("worker", &file);
    assert_ne!(again.wait_for("started")["policy"], house.told["agreed"]["policy"]);
    // Who dials by the old policy is told, too.
    house.refused(
        &format!("manager status {}", House::at(&address, "policy.toml")),
        3,
        "policy",
    );
    let status = house.run(&format!(
        "manager status {} -o json",
        House::at(&address, "second.toml")
    ));
    assert_eq!(status.code, 0, "{}", status.stderr);
}
