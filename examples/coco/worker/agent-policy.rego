# What the guest's agent does for its host: start one container, and tell how it is doing. Everything that is not allowed
# here is refused. Written by `cloister policy from-image`; a changed byte is another MRCONFIGID.
package agent_policy

import future.keywords.every
import future.keywords.if
import future.keywords.in

workload := {"arguments":["/usr/local/bin/cloister","worker","--config","/cloister/node.toml"],"environment":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","CLOISTER_OPENVINO_DIR=/opt/openvino"],"image":"registry.example.org/cloister/worker@sha256:0000000000000000000000000000000000000000000000000000000000000000"}

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
default ReadStreamRequest := true
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
default UpdateInterfaceRequest := true
default UpdateRoutesRequest := true
default WaitProcessRequest := true
default WriteStreamRequest := false

CreateSandboxRequest if {
    input.guest_hook_path == ""
    count(input.kernel_modules) == 0
    input.sandbox_pidns == false
}

# The pod's own container, which the guest's image brings along: it waits, and does nothing else.
CreateContainerRequest if {
    input.OCI.Annotations["io.katacontainers.pkg.oci.container_type"] == "pod_sandbox"
    input.OCI.Process.Args == ["/pause"]
    confined
    every storage in input.storages {
        storage.driver == "image_guest_pull"
        storage.source == "pause"
    }
}

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
    images := [storage | some storage in input.storages; storage.driver == "image_guest_pull"]
    count(images) == 1
    images[0].source == workload.image
}

known(variable) if variable in workload.environment
# What Kubernetes puts into every container.
known(variable) if startswith(variable, "HOSTNAME=")
known(variable) if startswith(variable, "KUBERNETES_")

# No more rights than a container without privileges has, no hooks, no devices.
confined if {
    input.OCI.Process.NoNewPrivileges == true
    not input.OCI.Process.Terminal
    not has_hooks
    count(input.devices) == 0
    dangerous := {"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_BPF", "CAP_MKNOD", "CAP_DAC_READ_SEARCH"}
    granted := {capability | some capability in input.OCI.Process.Capabilities.Bounding}
    count(dangerous & granted) == 0
    every mount in input.OCI.Mounts {
        not startswith(mount.source, "/sys")
        not startswith(mount.source, "/dev/")
        not startswith(mount.source, "/run/confidential-containers")
    }
}

has_hooks if count(input.OCI.Hooks.Prestart) > 0
has_hooks if count(input.OCI.Hooks.CreateRuntime) > 0
has_hooks if count(input.OCI.Hooks.CreateContainer) > 0
has_hooks if count(input.OCI.Hooks.StartContainer) > 0
has_hooks if count(input.OCI.Hooks.Poststart) > 0
