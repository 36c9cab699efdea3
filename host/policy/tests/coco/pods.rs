//! The manifests of the pods, as a cluster reads them: no key that is not known here, and of each the value that is safe.

use std::collections::BTreeMap;
use std::io::Read as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use saphyr::{LoadableYamlNode as _, Scalar, Yaml};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{ROLES, anchor, file};

const INITDATA: &str = "io.katacontainers.config.hypervisor.cc_init_data";

#[derive(Deserialize)]
#[serde(deny_unknown_fields, tag = "kind")]
enum Manifest {
    Pod(Box<Object<Pod>>),
    NetworkPolicy(Object<Network>),
    Service(Object<Service>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object<Spec> {
    api_version: String,
    metadata: Metadata,
    spec: Spec,
    /// What a cluster would not know.
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// What is not a field here (an init container, a host path, an alias of a host) no pod of ours may have.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Pod {
    runtime_class_name: String,
    restart_policy: String,
    automount_service_account_token: bool,
    enable_service_links: bool,
    host_network: bool,
    #[serde(rename = "hostPID")]
    host_pid: bool,
    #[serde(rename = "hostIPC")]
    host_ipc: bool,
    share_process_namespace: bool,
    containers: [Container; 1],
    volumes: Vec<Volume>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Container {
    #[serde(rename = "name")]
    _name: String,
    image: String,
    image_pull_policy: String,
    command: Vec<String>,
    args: Vec<String>,
    stdin: bool,
    tty: bool,
    #[serde(default)]
    ports: Vec<ContainerPort>,
    security_context: Security,
    resources: Resources,
    volume_mounts: Vec<VolumeMount>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ContainerPort {
    #[serde(rename = "name")]
    _name: String,
    container_port: u16,
    protocol: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Security {
    privileged: bool,
    allow_privilege_escalation: bool,
    read_only_root_filesystem: bool,
    capabilities: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resources {
    limits: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct VolumeMount {
    name: String,
    mount_path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Volume {
    name: String,
    empty_dir: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Network {
    pod_selector: Selector,
    policy_types: Vec<String>,
    ingress: Vec<Rule>,
    egress: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Selector {
    match_labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    ports: Vec<Port>,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct Port {
    port: u16,
    protocol: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    #[serde(rename = "type")]
    kind: String,
    selector: BTreeMap<String, String>,
    ports: [ServicePort; 1],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ServicePort {
    #[serde(rename = "name")]
    _name: String,
    port: u16,
    target_port: u16,
    protocol: String,
}

/// YAML as JSON, which is what a cluster makes of it.
fn plain(yaml: &Yaml<'_>) -> Value {
    match yaml {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(value)) => json!(value),
        Yaml::Value(Scalar::Integer(value)) => json!(value),
        Yaml::Value(Scalar::FloatingPoint(value)) => json!(value.0),
        Yaml::Value(Scalar::String(value)) => json!(value),
        Yaml::Sequence(values) => values.iter().map(plain).collect(),
        Yaml::Mapping(entries) => {
            let entries = entries.iter();
            let entries = entries.map(|(key, value)| (key.as_str().expect("a key is text").to_owned(), plain(value)));
            Value::Object(entries.collect())
        }
        // Tags, aliases and anchors: nothing that these manifests need.
        other => panic!("{other:?}"),
    }
}

struct Manifests {
    pod: Object<Pod>,
    network: Object<Network>,
    service: Option<Object<Service>>,
}

fn manifests(role: &str) -> Manifests {
    let text = file(&format!("examples/coco/{role}.yaml"));
    let (mut pod, mut network, mut service) = (None, None, None);
    for document in Yaml::load_from_str(&text).unwrap() {
        let manifest = serde_json::from_value(plain(&document)).unwrap_or_else(|error| panic!("{role}.yaml: {error}"));
        let (version, others, twice) = match manifest {
            Manifest::Pod(it) => (
                "v1",
                it.others.len() + usize::from(it.api_version != "v1"),
                pod.replace(*it).is_some(),
            ),
            Manifest::NetworkPolicy(it) => {
                let version = "networking.k8s.io/v1";
                (
                    version,
                    it.others.len() + usize::from(it.api_version != version),
                    network.replace(it).is_some(),
                )
            }
            Manifest::Service(it) => (
                "v1",
                it.others.len() + usize::from(it.api_version != "v1"),
                service.replace(it).is_some(),
            ),
        };
        assert!(
            others == 0 && !twice,
            "{role}.yaml: one of each kind, of {version}, with known fields"
        );
    }
    Manifests {
        pod: pod.expect("a pod"),
        network: network.expect("a network policy"),
        service,
    }
}

#[test]
fn pods_run_the_one_image_of_their_initdata_which_they_carry() {
    for role in ROLES {
        let (pod, anchor) = (manifests(role).pod, anchor(role));
        let annotation = STANDARD.decode(&pod.metadata.annotations[INITDATA]).unwrap();
        let mut text = String::new();
        flate2::read::GzDecoder::new(annotation.as_slice())
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, anchor.initdata(), "{role}");
        let kernel = "io.katacontainers.config.hypervisor.kernel_params";
        assert_eq!(pod.metadata.annotations[kernel], "agent.guest_components_rest_api=all");
        assert_eq!(pod.metadata.annotations.len(), 2, "{role}");
        let [container] = &pod.spec.containers;
        assert_eq!(container.image, anchor.workload().image(), "{role}");
        assert_eq!(container.image_pull_policy, "Always");
        let words = [&container.command[..], &container.args[..]].concat();
        assert_eq!(words, anchor.workload().arguments(), "{role}");
    }
}

#[test]
fn pods_have_no_privileges_and_nothing_of_their_host() {
    for role in ROLES {
        let pod = manifests(role).pod.spec;
        assert_eq!(
            (pod.runtime_class_name.as_str(), pod.restart_policy.as_str()),
            ("kata-qemu-tdx", "Always")
        );
        let shared = [
            pod.host_network,
            pod.host_pid,
            pod.host_ipc,
            pod.share_process_namespace,
        ];
        assert_eq!(shared, [false; 4], "{role}");
        assert!(
            !pod.automount_service_account_token && !pod.enable_service_links,
            "{role}"
        );
        let [container] = &pod.containers;
        assert!(!container.stdin && !container.tty, "{role}");
        let security = &container.security_context;
        assert!(!security.privileged && !security.allow_privilege_escalation, "{role}");
        assert!(security.read_only_root_filesystem, "{role}");
        assert_eq!(json!(security.capabilities), json!({ "drop": ["ALL"] }), "{role}");
        assert!(
            ["cpu", "memory"]
                .iter()
                .all(|limit| container.resources.limits.contains_key(*limit)),
            "{role}"
        );
        // The agent lets a volume be mounted here alone.
        let [mount] = container.volume_mounts.as_slice() else {
            panic!("{role}: one mount")
        };
        assert_eq!(mount.mount_path, "/var/lib/cloister");
        let [volume] = pod.volumes.as_slice() else {
            panic!("{role}: one volume")
        };
        assert!(volume.name == mount.name && volume.empty_dir.is_empty(), "{role}");
    }
}

#[test]
fn the_network_of_a_pod_is_narrow_and_tls_is_passed_through() {
    let tcp = |port| Port {
        port,
        protocol: "TCP".to_owned(),
    };
    for role in ROLES {
        let Manifests { pod, network, service } = manifests(role);
        assert_eq!(network.metadata.name, pod.metadata.name);
        assert_eq!(network.spec.pod_selector.match_labels, pod.metadata.labels, "{role}");
        assert!(!pod.metadata.labels.is_empty());
        assert_eq!(network.spec.policy_types, ["Ingress", "Egress"]);
        let open = |rules: Vec<Rule>| rules.into_iter().flat_map(|rule| rule.ports).collect::<Vec<_>>();
        let (ingress, egress) = (open(network.spec.ingress), open(network.spec.egress));
        let [container] = &pod.spec.containers;
        let ports: Vec<_> = container
            .ports
            .iter()
            .map(|port| (port.container_port, port.protocol.as_str()))
            .collect();
        if role == "aggregator" {
            assert_eq!((ingress, ports), (vec![tcp(7700)], vec![(7700, "TCP")]));
            assert!(egress.iter().all(|port| [443, 53].contains(&port.port)), "{egress:?}");
            // Layer 4: nothing in front of the TD that could end TLS, and no annotation that asks a cloud for it.
            let service = service.expect("workers reach it");
            assert_eq!(service.spec.kind, "LoadBalancer");
            assert_eq!(service.spec.selector, pod.metadata.labels);
            let [port] = service.spec.ports;
            assert_eq!(
                (port.port, port.target_port, port.protocol.as_str()),
                (7700, 7700, "TCP")
            );
            assert!(service.metadata.annotations.is_empty());
        } else {
            assert!(
                ingress.is_empty() && ports.is_empty() && service.is_none(),
                "a worker only dials out"
            );
            assert!(egress.contains(&tcp(7700)), "{egress:?}");
            assert!(
                egress.iter().all(|port| [7700, 443, 53].contains(&port.port)),
                "{egress:?}"
            );
        }
    }
}
