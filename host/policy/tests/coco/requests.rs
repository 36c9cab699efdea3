//! What Kata's runtime asks of the guest's agent.

use cloister_policy::anchor::Anchor;
use serde_json::{Value, json};

use super::anchor;

pub(super) const CONTAINER: &str = "4f0d7f3a2b";
pub(super) const SANDBOX: &str = "9c1e55d0aa";

/// A request with one value replaced.
pub(super) fn with(mut request: Value, pointer: &str, value: Value) -> Value {
    *request.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value;
    request
}

/// A request with one more element in a list.
pub(super) fn and(mut request: Value, pointer: &str, value: Value) -> Value {
    let list = request.pointer_mut(pointer).and_then(Value::as_array_mut);
    list.unwrap_or_else(|| panic!("{pointer}")).push(value);
    request
}

pub(super) fn image_storage(source: &str, kind: &str, container: &str) -> Value {
    let metadata = json!({ "metadata": { "io.kubernetes.cri.container-type": kind } });
    json!({
        "driver": "image_guest_pull",
        "driver_options": [format!("image_guest_pull={metadata}")],
        "source": source,
        "fstype": "overlay",
        "options": [],
        "mount_point": format!("/run/kata-containers/{container}/rootfs"),
        "fs_group": null,
        "shared": false,
    })
}

fn volume() -> Value {
    json!({
        "driver": "local",
        "driver_options": [],
        "source": "local",
        "fstype": "local",
        "options": ["mode=0777"],
        "mount_point": format!("/run/kata-containers/{SANDBOX}/local/state"),
        "fs_group": null,
        "shared": false,
    })
}

pub(super) fn mount(kind: &str, destination: &str, source: &str, options: &[&str]) -> Value {
    json!({ "type_": kind, "destination": destination, "source": source, "options": options })
}

/// What Kata's runtime asks of the agent for a pod's container.
pub(super) fn create_of(anchor: &Anchor) -> Value {
    let workload = anchor.workload();
    let mut environment = workload.environment().to_vec();
    environment.extend([
        "HOSTNAME=pod".to_owned(),
        "KUBERNETES_PORT=tcp://10.0.0.1:443".to_owned(),
    ]);
    let none: [&str; 0] = [];
    json!({
        "container_id": CONTAINER,
        "exec_id": CONTAINER,
        "sandbox_pidns": false,
        "string_user": null,
        "shared_mounts": [],
        "devices": [],
        "storages": [image_storage(workload.image(), "container", CONTAINER), volume()],
        "OCI": {
            "Version": "1.1.0",
            "Annotations": {
                "io.katacontainers.pkg.oci.container_type": "pod_container",
                "io.kubernetes.cri.container-type": "container",
            },
            "Root": { "Path": format!("/run/kata-containers/{CONTAINER}/rootfs"), "Readonly": true },
            "Process": {
                "Args": workload.arguments(),
                "Env": environment,
                "Cwd": "/",
                "NoNewPrivileges": true,
                "Terminal": false,
                "User": { "UID": 0, "GID": 0, "AdditionalGids": [], "Username": "" },
                "Capabilities": {
                    "Ambient": none, "Bounding": none, "Effective": none, "Inheritable": none, "Permitted": none,
                },
            },
            "Mounts": [
                mount("proc", "/proc", "proc", &["nosuid", "noexec", "nodev"]),
                mount("tmpfs", "/dev", "tmpfs", &["nosuid", "strictatime", "mode=755"]),
                mount("devpts", "/dev/pts", "devpts", &["nosuid", "noexec"]),
                mount("mqueue", "/dev/mqueue", "mqueue", &["nosuid"]),
                mount("sysfs", "/sys", "sysfs", &["nosuid", "ro"]),
                mount("cgroup", "/sys/fs/cgroup", "cgroup", &["nosuid", "ro"]),
                mount("bind", "/dev/shm", "/run/kata-containers/sandbox/shm", &["rbind"]),
                mount("local", "/var/lib/cloister", &format!("/run/kata-containers/{SANDBOX}/local/state"), &["rbind", "rw"]),
            ],
            "Hooks": null,
            "Linux": {
                "Devices": [],
                "Namespaces": [
                    { "Type": "ipc", "Path": "" }, { "Type": "uts", "Path": "" }, { "Type": "mount", "Path": "" },
                ],
                "Sysctl": {},
            },
        },
    })
}

/// The pod's own container.
pub(super) fn pause() -> Value {
    let mut request = create_of(&anchor("worker"));
    request["container_id"] = SANDBOX.into();
    request["storages"] = json!([image_storage("pause", "sandbox", SANDBOX)]);
    let oci = &mut request["OCI"];
    oci["Annotations"] = json!({ "io.katacontainers.pkg.oci.container_type": "pod_sandbox" });
    oci["Root"]["Path"] = format!("/run/kata-containers/{SANDBOX}/rootfs").into();
    oci["Process"]["Args"] = json!(["/pause"]);
    oci["Process"]["Capabilities"]["Bounding"] = json!(["CAP_CHOWN", "CAP_MKNOD", "CAP_NET_RAW"]);
    oci["Mounts"].as_array_mut().unwrap().pop();
    oci["Linux"]["Sysctl"] = json!({ "net.ipv4.ip_unprivileged_port_start": "0" });
    request
}
