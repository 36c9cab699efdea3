# What the guest's agent does for its host: start one container, and tell how it is doing. Everything that is not allowed
# here is refused. Written by `cloister policy from-image`; a changed byte is another MRCONFIGID.
package agent_policy

import future.keywords.every
import future.keywords.if
import future.keywords.in

workload := {
  "arguments": [
    "/usr/local/bin/cloister",
    "worker",
    "--config",
    "/cloister/node.toml"
  ],
  "environment": [
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
  ],
  "image": "registry.example.org/cloister/worker@sha256:0000000000000000000000000000000000000000000000000000000000000000"
}

default AddARPNeighborsRequest := false
default AddSwapRequest := false
default CloseStdinRequest := false
default CopyFileRequest := false
default CreateContainerRequest := false
default CreateSandboxRequest := false
default DestroySandboxRequest := true
default ExecProcessRequest := false
default GetDiagnosticDataRequest := false
default GetMetricsRequest := false
default GetOOMEventRequest := true
default GuestDetailsRequest := true
default ListInterfacesRequest := false
default ListRoutesRequest := false
default MemHotplugByProbeRequest := false
default OnlineCPUMemRequest := true
default PauseContainerRequest := false
default PullImageRequest := false
default ReadStreamRequest := false
default RemoveContainerRequest := true
default RemoveStaleVirtiofsShareMountsRequest := false
default ReseedRandomDevRequest := false
default ResumeContainerRequest := false
default SetGuestDateTimeRequest := false
default SetPolicyRequest := false
default SignalProcessRequest := true
default StartContainerRequest := true
default StartTracingRequest := false
default StatsContainerRequest := true
default StopTracingRequest := false
default TtyWinResizeRequest := false
default UpdateContainerRequest := false
default UpdateEphemeralMountsRequest := false
default UpdateInterfaceRequest := false
default UpdateRoutesRequest := false
default WaitProcessRequest := true
default WriteStreamRequest := false

CreateSandboxRequest if {
    input.guest_hook_path == ""
    count(input.kernel_modules) == 0
    input.sandbox_pidns == false
    every storage in input.storages {
        memory_of_the_pod(storage)
    }
}

# The one storage of a pod: memory that its containers share. A folder of the host's would be one more.
memory_of_the_pod(storage) if {
    storage.driver == "ephemeral"
    storage.fstype == "tmpfs"
    storage.source == "shm"
    storage.mount_point == "/run/kata-containers/sandbox/shm"
    count(storage.driver_options) == 0
    not binds(storage.options)
}

# The network outside of the guest may be anything; the loopback interface, where quotes are to be had, stays as it is.
UpdateInterfaceRequest if {
    input.interface.name != "lo"
    input.interface.hwAddr != "00:00:00:00:00:00"
}

UpdateRoutesRequest if {
    every route in input.routes.Routes {
        route.device != "lo"
        not loopback(route.source)
        not loopback(route.dest)
    }
}

loopback(address) if startswith(address, "127.")
loopback(address) if address in {"::1", "::1/128"}

# The pod's own container, which the guest's image brings along: it waits, and does nothing else.
CreateContainerRequest if {
    input.OCI.Annotations["io.katacontainers.pkg.oci.container_type"] == "pod_sandbox"
    input.OCI.Process.Args == ["/pause"]
    confined
    count(input.storages) == 1
    image := input.storages[0]
    is_root(image)
    image.source == "pause"
    # By this the guest takes its own image, and pulls none of that name.
    count(image.driver_options) == 1
    of_the_guest(json.unmarshal(trim_prefix(image.driver_options[0], "image_guest_pull=")).metadata)
}

of_the_guest(metadata) if metadata["io.kubernetes.cri.container-type"] == "sandbox"
of_the_guest(metadata) if metadata["io.kubernetes.cri-o.ContainerType"] == "sandbox"

CreateContainerRequest if {
    input.OCI.Annotations["io.katacontainers.pkg.oci.container_type"] == "pod_container"
    input.OCI.Process.Args == workload.arguments
    every variable in workload.environment {
        variable in input.OCI.Process.Env
    }
    every variable in input.OCI.Process.Env {
        known(variable)
    }
    confined
    count(capabilities) == 0
    images := [storage | some storage in input.storages; not empty_volume(storage)]
    count(images) == 1
    is_root(images[0])
    images[0].source == workload.image
}

known(variable) if variable in workload.environment
# What Kubernetes puts into every container.
known(variable) if startswith(variable, "HOSTNAME=")
known(variable) if startswith(variable, "KUBERNETES_")

# The image pulled and unpacked by the guest is the container's root, at the guest's own place for it.
is_root(storage) if {
    storage.driver == "image_guest_pull"
    storage.mount_point == input.OCI.Root.Path
    input.OCI.Root.Path == concat("", ["/run/kata-containers/", input.container_id, "/rootfs"])
}

# A volume that the guest makes, empty, and not within a container's root.
empty_volume(storage) if {
    storage.driver == "local"
    storage.fstype == "local"
    storage.source == "local"
    contains(storage.mount_point, "/local/")
    a_place_for_volumes(storage.mount_point)
}

empty_volume(storage) if {
    storage.driver == "ephemeral"
    storage.fstype == "tmpfs"
    storage.source == "tmpfs"
    startswith(storage.mount_point, "/run/kata-containers/sandbox/ephemeral/")
    a_place_for_volumes(storage.mount_point)
    count(storage.driver_options) == 0
    not binds(storage.options)
}

a_place_for_volumes(path) if {
    startswith(path, "/run/kata-containers/")
    not contains(path, "..")
    not startswith(path, concat("", [input.OCI.Root.Path, "/"]))
}

# No more rights than a container without privileges has, no hooks, no devices, and nothing of the host's in its files.
confined if {
    input.OCI.Process.NoNewPrivileges == true
    not input.OCI.Process.Terminal
    not has_hooks
    not has_shared_mounts
    not has_devices
    not has_settings_of_the_kernel
    count(input.devices) == 0
    dangerous := {"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_BPF", "CAP_DAC_READ_SEARCH"}
    count(dangerous & capabilities) == 0
    every mount in input.OCI.Mounts {
        harmless(mount)
    }
    # Its own view of the files; what has a path is somebody else's view.
    "mount" in {namespace.Type | some namespace in input.OCI.Linux.Namespaces}
    every namespace in input.OCI.Linux.Namespaces {
        own(namespace)
    }
}

capabilities := {capability |
    some kind in ["Bounding", "Effective", "Inheritable", "Permitted", "Ambient"]
    some capability in input.OCI.Process.Capabilities[kind]
}

own(namespace) if namespace.Path == ""
own(namespace) if namespace.Type == "network"

# The kernel's own file systems, each at its place.
harmless(mount) if {
    [mount.type_, mount.destination] in {
        ["proc", "/proc"],
        ["sysfs", "/sys"],
        ["cgroup", "/sys/fs/cgroup"],
        ["tmpfs", "/dev"],
        ["tmpfs", "/dev/shm"],
        ["devpts", "/dev/pts"],
        ["mqueue", "/dev/mqueue"],
    }
    not binds(mount.options)
}

harmless(mount) if {
    mount.type_ == "bind"
    mount.destination == "/dev/shm"
    mount.source == "/run/kata-containers/sandbox/shm"
}

# State: sealed files and content by digest.
harmless(mount) if {
    mount.type_ in {"bind", "local"}
    mount.destination == "/var/lib/cloister"
    some storage in input.storages
    empty_volume(storage)
    mount.source == storage.mount_point
}

binds(options) if "bind" in options
binds(options) if "rbind" in options

has_hooks if count(input.OCI.Hooks.Prestart) > 0
has_hooks if count(input.OCI.Hooks.CreateRuntime) > 0
has_hooks if count(input.OCI.Hooks.CreateContainer) > 0
has_hooks if count(input.OCI.Hooks.StartContainer) > 0
has_hooks if count(input.OCI.Hooks.Poststart) > 0
has_hooks if count(input.OCI.Hooks.Poststop) > 0

has_shared_mounts if count(input.shared_mounts) > 0

has_devices if count(input.OCI.Linux.Devices) > 0

# One of them names a program that the kernel runs when another one crashes.
has_settings_of_the_kernel if {
    some name, _ in input.OCI.Linux.Sysctl
    not name in {"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range"}
}
