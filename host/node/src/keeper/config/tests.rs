use super::*;

const WORKER: &str = r#"
name = "worker-a"
policy = "p.toml"
credential = "c"
node_key = "k"
aggregator = "127.0.0.1:7700"
provider = "simulated"
[content]
dir = "content"
[data.train]
path = "train.csv"
[simulated]
authority = "authority"
"#;

#[test]
fn a_worker_file_is_read_and_its_salt_lies_beside_the_data() {
    let config = NodeConfig::parse(WORKER, "node.toml").unwrap();
    assert_eq!(config.engine.threads, 1);
    assert_eq!((&config.engine.cpus, config.engine.pinning), (&None, false));
    assert_eq!(config.data["train"].salt_place(), Place::File("train.csv.salt".into()));
}

#[test]
fn processors_for_the_engine_are_named_as_the_kernel_numbers_them() {
    let text = format!("{WORKER}[engine]\nthreads = 4\ncpus = \"8,0-3\"\npinning = true\n");
    let engine = NodeConfig::parse(&text, "node.toml").unwrap().engine;
    assert_eq!(engine.cpus.unwrap().to_string(), "0-3,8");
    assert!(engine.pinning);
}

#[test]
fn an_unknown_key_is_refused_with_line_and_nearest_known_one() {
    let text = WORKER.replace("aggregator =", "agregator =");
    let error = NodeConfig::parse(&text, "node.toml").unwrap_err().to_string();
    assert!(error.starts_with("node.toml:6:1: unknown field `agregator`"), "{error}");
    assert!(error.ends_with("did you mean `aggregator`?"), "{error}");
}

#[test]
fn contradictions_are_refused() {
    for (from, to, wanted) in [
        ("aggregator = \"127.0.0.1:7700\"", "", "exactly one of `listen`"),
        ("\"127.0.0.1:7700\"", "\"127.0.0.1\"", "`aggregator` is no HOST:PORT"),
        (
            "provider =",
            "listen = \"127.0.0.1:1\"\nprovider =",
            "exactly one of `listen`",
        ),
        (
            "[simulated]\nauthority = \"authority\"",
            "",
            "wants a section [simulated]",
        ),
        ("[simulated]", "[engine]\nthreads = 0\n[simulated]", "between 1 and 256"),
        (
            "[simulated]",
            "[engine]\ncpus = \"3-1\"\n[simulated]",
            "comes before its begin",
        ),
        (
            "[simulated]",
            "[engine]\ncpus = \"0-1\"\nthreads = 4\n[simulated]",
            "names 2 processors only",
        ),
        ("\"simulated\"", "\"coco\"", "names another one"),
        ("\"simulated\"", "\"sgx\"", "unknown variant `sgx`"),
        ("name = \"worker-a\"", "name = 7", "invalid type"),
    ] {
        let text = WORKER.replacen(from, to, 1);
        let error = NodeConfig::parse(&text, "n").unwrap_err().to_string();
        assert!(error.contains(wanted), "{to}: {error}");
    }
}

#[test]
fn collateral_comes_from_a_service_or_out_of_a_bundle() {
    let with = |lines: &str| NodeConfig::parse(&format!("{WORKER}[collateral]\ncache = \"cache\"\n{lines}\n"), "n");
    let both = "url = \"https://pccs\"\nbundle = \"b.json\"";
    for (lines, wanted) in [
        ("", "exactly one of `url`"),
        (both, "exactly one of `url`"),
        (
            "bundle = \"b.json\"\nplatforms = [\"00806f050000\"]",
            "are for a service",
        ),
        ("bundle = \"b.json\"\nauthorities = \"ca.pem\"", "are for a service"),
        ("bundel = \"b.json\"", "did you mean `bundle`"),
    ] {
        let error = with(lines).unwrap_err().to_string();
        assert!(error.contains(wanted), "{lines}: {error}");
    }
    let mut bundle = with("bundle = \"b.json\"").unwrap();
    bundle.resolve(Path::new("/node"));
    assert_eq!(
        bundle.collateral.unwrap().bundle.as_deref(),
        Some(Path::new("/node/b.json"))
    );
    assert!(with("url = \"https://pccs\"\nplatforms = [\"00806f050000/processor\"]").is_ok());
}

#[test]
fn every_key_of_the_schema_is_a_known_one() {
    // A typing error two letters off each key finds its way back to it.
    for key in KNOWN_KEYS {
        let text = format!("{key}zz = 1\n{WORKER}");
        let error = NodeConfig::parse(&text, "n").unwrap_err().to_string();
        assert!(error.contains("did you mean"), "{key}: {error}");
    }
}

#[test]
fn a_managers_node_needs_no_files_of_its_own() {
    let managed = WORKER
        .replace("policy = \"p.toml\"\ncredential = \"c\"\nnode_key = \"k\"\n", "")
        .replace(
            "path = \"train.csv\"",
            "path = \"train.csv.sealed\"\nsalt = \"secret://north/salt\"",
        )
        + &format!(
            "[manager]\naddress = \"127.0.0.1:7800\"\nanchor = \"{}\"\n",
            "ab".repeat(32)
        );
    let config = NodeConfig::parse(&managed, "n").unwrap();
    assert!(config.policy.is_none() && config.credential.is_none());
    assert_eq!(config.data["train"].salt_place(), Place::Secret("north/salt".into()));
    for (from, to, wanted) in [
        ("aggregator =", "policy = \"p.toml\"\naggregator =", "take `policy` out"),
        ("aggregator =", "node_key = \"k\"\naggregator =", "both or neither"),
        ("127.0.0.1:7800", "manager", "`manager.address` is no HOST:PORT"),
        ("abab", "xyab", "`manager.anchor`"),
        (
            "[manager]",
            "[agreement]\nanchor = \"a\"\npolicies = \"p\"\n[manager]",
            "[agreement]",
        ),
        (
            "[manager]",
            "[vault]\npath = \"v\"\nkey_file = \"k\"\n[manager]",
            "`vault.key_file`",
        ),
    ] {
        let text = managed.replacen(from, to, 1);
        let error = NodeConfig::parse(&text, "n").unwrap_err().to_string();
        assert!(error.contains(wanted), "{to}: {error}");
    }
}

#[test]
fn secrets_are_named_where_they_are_taken_and_elsewhere_the_error_says_where() {
    let managed = WORKER.replace("policy = \"p.toml\"\ncredential = \"c\"\nnode_key = \"k\"\n", "")
        + &format!(
            "[manager]\naddress = \"127.0.0.1:7800\"\nanchor = \"{}\"\n",
            "ab".repeat(32)
        );
    let all = managed.replace(
        "path = \"train.csv\"",
        "path = \"train.csv.sealed\"\nsalt = \"secret://north/salt\"\nkey = \"secret://north/rows\"",
    ) + "[kbs]\nurl = \"https://kbs.example.org\"\nauthorities = \"secret://south/authorities\"\n";
    let config = NodeConfig::parse(&all, "n").unwrap();
    let named: Vec<_> = config.secrets().collect();
    assert_eq!(named, ["north/salt", "north/rows", "south/authorities"]);
    for (from, to, wanted) in [
        (
            "aggregator =",
            "node_key = \"secret://north/key\"\naggregator =",
            "the manager gives this node its own",
        ),
        (
            "path = \"train.csv.sealed\"",
            "path = \"secret://north/rows\"",
            "its key is the secret",
        ),
        (
            "[manager]",
            "[vault]\npath = \"v\"\nkey_file = \"secret://north/vault\"\n[manager]",
            "`vault.key_file`",
        ),
        (
            "aggregator =",
            "references = \"secret://north/values\"\naggregator =",
            "`references` can't be",
        ),
        (
            "key = \"secret://north/rows\"",
            "key = \"rows.key\"",
            "neither `kbs:///",
        ),
        ("secret://south/authorities", "kbs:///a/b/c", "vouch for"),
    ] {
        let error = NodeConfig::parse(&all.replacen(from, to, 1), "n")
            .unwrap_err()
            .to_string();
        assert!(error.contains(wanted), "{to}: {error}");
        assert!(
            !error.contains("can't be") || error.contains("`salt` and `key` of [data.NAME]"),
            "{error}"
        );
    }
}

#[test]
fn without_a_manager_a_node_has_its_files() {
    for (line, wanted) in [
        ("policy = \"p.toml\"\n", "`policy`"),
        ("credential = \"c\"\n", "`credential`"),
        ("node_key = \"k\"\n", "`node_key`"),
    ] {
        let error = NodeConfig::parse(&WORKER.replace(line, ""), "n")
            .unwrap_err()
            .to_string();
        assert!(error.contains(wanted) && error.contains("is missing"), "{error}");
    }
    let secret = WORKER.replace(
        "path = \"train.csv\"",
        "path = \"t.csv\"\nsalt = \"secret://north/salt\"",
    );
    let error = NodeConfig::parse(&secret, "n").unwrap_err().to_string();
    assert!(error.contains("[manager]"), "{error}");
}

#[test]
fn the_templates_of_node_files_are_read_and_those_under_intels_root_name_their_engines_folder() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut read = 0;
    for example in std::fs::read_dir(&examples).unwrap() {
        let example = example.unwrap().path();
        for folder in ["templates", "aggregator", "worker"] {
            let files = std::fs::read_dir(example.join(folder)).into_iter().flatten();
            for file in files.map(|file| file.unwrap().path()) {
                let text = std::fs::read_to_string(&file).unwrap();
                // Descriptions of datasets, policies and initdata lie there, too.
                if !text.contains("\nprovider = ") {
                    continue;
                }
                let shown = file.display().to_string();
                let config = NodeConfig::parse(&text, &shown).unwrap_or_else(|error| panic!("{error}"));
                let named = config.engine.openvino_dir.is_some() || config.engine.backend == EngineChoice::Tract;
                assert!(named || config.provider == Some(Provider::Simulated), "{shown}");
                read += 1;
            }
        }
    }
    assert!(read >= 6, "only {read} templates of node files");
}
