//! What the guest's agent decides by the shipped agent policies, asked as the agent asks: by its own interpreter of Rego, with
//! requests as its protocol has them.

use cloister_policy::anchor::{Anchor, Workload};
use serde_json::{Value, json};

use super::requests::{CONTAINER, SANDBOX, and, create_of, image_storage, mount, pause, with};
use super::{ROLES, anchor};

const CREATE: &str = "CreateContainerRequest";

/// The decision about a request; what is not decided is refused.
fn decides(policy: String, request: &str, input: &Value) -> bool {
    let mut engine = regorus::Engine::new();
    engine.add_policy("agent_policy.rego".to_owned(), policy).unwrap();
    engine.set_input_json(&input.to_string()).unwrap();
    let query = format!("data.agent_policy.{request}");
    let results = engine.eval_query(query, false).unwrap();
    let value = results.result.first().and_then(|result| result.expressions.first());
    value.is_some_and(|expression| expression.value == regorus::Value::Bool(true))
}

fn allowed(role: &str, request: &str, input: &Value) -> bool {
    // What is in the initdata is what the agent gets.
    let initdata: toml::Table = toml::from_str(&anchor(role).initdata()).unwrap();
    let policy = initdata["data"]["policy.rego"].as_str().unwrap();
    decides(policy.to_owned(), request, input)
}

fn create(role: &str) -> Value {
    create_of(&anchor(role))
}

#[test]
fn the_agent_starts_the_shipped_container_of_each_pod_and_the_pods_own() {
    for role in ROLES {
        assert!(allowed(role, CREATE, &create(role)), "{role}");
        assert!(allowed(role, CREATE, &pause()), "{role}");
    }
    assert!(!allowed("worker", CREATE, &create("aggregator")));
    for request in ["StartContainerRequest", "SignalProcessRequest", "WaitProcessRequest"] {
        assert!(allowed("worker", request, &json!({})), "{request}");
    }
}

const ATTACKER: &str =
    "registry.example.org/attacker@sha256:1111111111111111111111111111111111111111111111111111111111111111";

#[test]
fn the_agent_starts_no_other_image_command_line_or_environment() {
    for role in ROLES {
        let request = create(role);
        let arguments = anchor(role).workload().arguments().to_vec();
        let (shorter, longer) = (
            &arguments[..arguments.len() - 1],
            [&arguments[..], &["-v".to_owned()]].concat(),
        );
        for (what, input) in [
            (
                "another image",
                with(request.clone(), "/storages/0/source", ATTACKER.into()),
            ),
            ("no image", with(request.clone(), "/storages", json!([]))),
            (
                "a second image",
                and(
                    request.clone(),
                    "/storages",
                    image_storage(ATTACKER, "container", CONTAINER),
                ),
            ),
            (
                "a shell",
                with(request.clone(), "/OCI/Process/Args", json!(["/bin/sh"])),
            ),
            (
                "a word less",
                with(request.clone(), "/OCI/Process/Args", json!(shorter)),
            ),
            ("a word more", with(request.clone(), "/OCI/Process/Args", json!(longer))),
            (
                "a library before all others",
                and(request.clone(), "/OCI/Process/Env", "LD_PRELOAD=/x.so".into()),
            ),
            (
                "an environment without what the policy sets",
                with(request.clone(), "/OCI/Process/Env", json!([])),
            ),
            (
                "another value of what the policy sets",
                and(request.clone(), "/OCI/Process/Env", "CLOISTER_OPENVINO_DIR=/x".into()),
            ),
            (
                "a container that calls itself the pod's own",
                with(
                    request.clone(),
                    "/OCI/Annotations/io.katacontainers.pkg.oci.container_type",
                    "pod_sandbox".into(),
                ),
            ),
        ] {
            assert!(!allowed(role, CREATE, &input), "{role}: {what}");
        }
    }
    for (what, input) in [
        (
            "another program",
            with(pause(), "/OCI/Process/Args", json!(["/bin/sh"])),
        ),
        ("an image of that name, pulled", {
            let pulled = image_storage("pause", "container", SANDBOX);
            with(pause(), "/storages/0", pulled)
        }),
        ("another image", with(pause(), "/storages/0/source", ATTACKER.into())),
        (
            "no image, and a root of the host's",
            with(pause(), "/storages", json!([])),
        ),
    ] {
        assert!(!allowed("worker", CREATE, &input), "the pod's own with {what}");
    }
}

#[test]
fn the_agent_lets_nothing_of_the_hosts_into_the_containers_files() {
    let request = create("worker");
    let root = format!("/run/kata-containers/{CONTAINER}/rootfs");
    let shared = "/run/kata-containers/shared/containers/binary";
    let bind = |destination, source| mount("bind", destination, source, &["rbind"]);
    let storage = |driver: &str, point: &str| json!({ "driver": driver, "driver_options": [], "source": "host", "fstype": "ext4", "options": [], "mount_point": point });
    let mounts = "/OCI/Mounts";
    for (what, input) in [
        (
            "the program replaced",
            and(request.clone(), mounts, bind("/usr/local/bin/cloister", shared)),
        ),
        (
            "the libraries replaced",
            and(request.clone(), mounts, bind("/opt/openvino", shared)),
        ),
        (
            "its state brought along",
            and(request.clone(), mounts, bind("/var/lib/cloister", shared)),
        ),
        (
            "the quotes' folder",
            and(request.clone(), mounts, bind("/x", "/sys/kernel/config")),
        ),
        (
            "a bind that calls itself proc",
            and(request.clone(), mounts, mount("proc", "/proc", shared, &["bind"])),
        ),
        (
            "an empty folder over the program",
            and(
                request.clone(),
                mounts,
                bind("/usr/local/bin", &format!("/run/kata-containers/{SANDBOX}/local/state")),
            ),
        ),
        (
            "a disk",
            and(
                request.clone(),
                "/storages",
                storage("blk", &format!("{root}/usr/local/bin")),
            ),
        ),
        (
            "a shared folder",
            and(request.clone(), "/storages", storage("virtio-fs", &root)),
        ),
        (
            "an overlay",
            and(request.clone(), "/storages", storage("overlayfs", &root)),
        ),
        ("a volume within the root", {
            with(
                request.clone(),
                "/storages/1/mount_point",
                format!("{root}/local/x").into(),
            )
        }),
        ("a volume elsewhere", {
            let point = "/run/kata-containers/../../local/x";
            with(request.clone(), "/storages/1/mount_point", point.into())
        }),
        ("the image elsewhere", {
            with(request.clone(), "/storages/0/mount_point", format!("{root}/x").into())
        }),
        ("another root", with(request.clone(), "/OCI/Root/Path", shared.into())),
        (
            "shared mounts",
            and(request.clone(), "/shared_mounts", json!({ "name": "x" })),
        ),
    ] {
        assert!(!allowed("worker", CREATE, &input), "{what}");
    }
    let sandbox = json!({
        "guest_hook_path": "", "kernel_modules": [], "sandbox_pidns": false, "storages": [{
            "driver": "ephemeral", "driver_options": [], "source": "shm", "fstype": "tmpfs",
            "options": ["noexec", "nosuid", "nodev", "mode=1777", "size=67108864"],
            "mount_point": "/run/kata-containers/sandbox/shm", "fs_group": null,
        }],
    });
    let request = "CreateSandboxRequest";
    assert!(allowed("worker", request, &sandbox));
    for (what, input) in [
        ("a hook", with(sandbox.clone(), "/guest_hook_path", "/hooks".into())),
        (
            "a module",
            with(sandbox.clone(), "/kernel_modules", json!([{ "name": "x" }])),
        ),
        (
            "processes seen by all",
            with(sandbox.clone(), "/sandbox_pidns", true.into()),
        ),
        (
            "a shared folder",
            and(sandbox.clone(), "/storages", storage("virtio-fs", shared)),
        ),
        (
            "other memory",
            with(sandbox.clone(), "/storages/0/mount_point", "/usr".into()),
        ),
        ("a bind", and(sandbox.clone(), "/storages/0/options", "bind".into())),
    ] {
        assert!(!allowed("worker", request, &input), "{what}");
    }
}

#[test]
fn the_agent_gives_a_container_no_rights_over_its_guest() {
    let request = create("worker");
    for (what, input) in [
        (
            "new privileges",
            with(request.clone(), "/OCI/Process/NoNewPrivileges", false.into()),
        ),
        (
            "a terminal",
            with(request.clone(), "/OCI/Process/Terminal", true.into()),
        ),
        (
            "a capability",
            and(
                request.clone(),
                "/OCI/Process/Capabilities/Bounding",
                "CAP_CHOWN".into(),
            ),
        ),
        (
            "one that is inherited",
            and(
                request.clone(),
                "/OCI/Process/Capabilities/Ambient",
                "CAP_SYS_ADMIN".into(),
            ),
        ),
        (
            "a device",
            and(
                request.clone(),
                "/devices",
                json!({ "container_path": "/dev/tdx_guest" }),
            ),
        ),
        (
            "a device's node",
            and(request.clone(), "/OCI/Linux/Devices", json!({ "Path": "/dev/mem" })),
        ),
        (
            "a hook",
            with(request.clone(), "/OCI/Hooks", json!({ "Prestart": [{ "Path": "/x" }] })),
        ),
        (
            "a program that runs at a crash",
            with(
                request.clone(),
                "/OCI/Linux/Sysctl",
                json!({ "kernel.core_pattern": "|/x" }),
            ),
        ),
        (
            "the guest's own files",
            with(request.clone(), "/OCI/Linux/Namespaces/2/Path", "/proc/1/ns/mnt".into()),
        ),
        (
            "no files of its own",
            with(request.clone(), "/OCI/Linux/Namespaces", json!([])),
        ),
    ] {
        assert!(!allowed("worker", CREATE, &input), "{what}");
    }
    for (what, right) in [("a capability", "CAP_SYS_ADMIN"), ("another", "CAP_SYS_PTRACE")] {
        let input = and(pause(), "/OCI/Process/Capabilities/Bounding", right.into());
        assert!(!allowed("worker", CREATE, &input), "the pod's own with {what}");
    }
}

#[test]
fn the_agent_gives_no_shell_takes_no_file_and_no_other_policy() {
    for request in [
        "ExecProcessRequest",
        "CopyFileRequest",
        "SetPolicyRequest",
        "ReadStreamRequest",
        "WriteStreamRequest",
        "CloseStdinRequest",
        "TtyWinResizeRequest",
        "UpdateContainerRequest",
        "UpdateEphemeralMountsRequest",
        "PullImageRequest",
        "AddSwapRequest",
        "SetGuestDateTimeRequest",
        "StartTracingRequest",
        "GetDiagnosticDataRequest",
        "ResumeContainerRequest",
        // One that no agent has: what is not named is refused.
        "ConsoleRequest",
        "AllowRequestsFailingPolicy",
    ] {
        for input in [
            json!({}),
            create("worker"),
            json!({ "process": { "Args": ["/bin/sh"] } }),
        ] {
            assert!(!allowed("worker", request, &input), "{request}");
        }
    }
}

#[test]
fn the_agent_leaves_the_loopback_interface_where_quotes_are_to_be_had_alone() {
    let interface = |name: &str, address: &str| json!({ "interface": { "name": name, "hwAddr": address } });
    let update = |input: &Value| allowed("worker", "UpdateInterfaceRequest", input);
    assert!(update(&interface("eth0", "02:00:ca:fe:00:01")));
    assert!(!update(&interface("lo", "02:00:ca:fe:00:01")));
    assert!(!update(&interface("eth0", "00:00:00:00:00:00")));
    let route = |device: &str, dest: &str, source: &str| json!({ "routes": { "Routes": [{ "device": device, "dest": dest, "source": source, "gateway": "10.0.0.1" }] } });
    let update = |input: &Value| allowed("worker", "UpdateRoutesRequest", input);
    assert!(update(&route("eth0", "", "10.0.0.7")));
    for (device, dest, source) in [
        ("lo", "", ""),
        ("eth0", "127.0.0.0/8", ""),
        ("eth0", "", "127.0.0.1"),
        ("eth0", "::1/128", ""),
    ] {
        assert!(!update(&route(device, dest, source)), "{device} {dest} {source}");
    }
}

#[test]
fn words_of_a_workload_stay_words_and_the_longest_are_still_read() {
    // Agents read no line of more than 1024 bytes.
    let odd = "\"]} CreateContainerRequest if true # \\u0027";
    let long = "\\\"".repeat(250);
    let image = format!("registry.example.org/cloister@sha256:{}", "0".repeat(64));
    let words = vec!["/cloister".to_owned(), odd.to_owned(), long.clone()];
    let workload = Workload::new(image, words, vec![format!("A={}", "x".repeat(498))]).unwrap();
    let anchor = Anchor::new(workload, String::new(), String::new()).unwrap();
    let policy = anchor.workload().agent_policy();
    let request = create_of(&anchor);
    assert!(decides(policy.clone(), CREATE, &request));
    let other = with(request.clone(), "/OCI/Process/Args/1", "x".into());
    assert!(!decides(policy.clone(), CREATE, &other));
    assert!(!decides(policy, CREATE, &json!({})));
}
