//! Advice for a base URL whose host is unknown or refuses the connection: what the address means
//! where the exporter runs, and what people usually need instead.

use crate::process::container::Container;
use crate::settings::{BaseUrl, ServerAddress};
use crate::upstream::http::request_error::RequestErrorKind;

/// Docker Model Runner in containers of Docker Desktop: the host of the default base URL.
const MODEL_RUNNER: &str = "model-runner.docker.internal";
/// Names and addresses of the host in containers. The last is Docker Engine's.
const HOST_OF_CONTAINER: [&str; 3] = [
    "host.docker.internal",
    "host.containers.internal",
    "172.17.0.1",
];

const OLLAMA_PORT: u16 = 11434;
const MODEL_RUNNER_PORT: u16 = 12434;

const ENABLE_MODEL_RUNNER: &str =
    "nothing listens there: on Docker Desktop, run: docker desktop enable model-runner --tcp 12434";

/// The advice for `base`, where `container` is the container that the exporter runs in; `None` for
/// errors that say nothing about the address.
pub(super) fn on_address(
    base: &BaseUrl,
    error: RequestErrorKind,
    container: Option<Container>,
) -> Option<String> {
    let ServerAddress::Host { host, .. } = base.address() else {
        return None;
    };
    let is_unknown = match error {
        RequestErrorKind::UnknownHost => true,
        RequestErrorKind::Refused => false,
        _ => return None,
    };
    let port = base.port();
    if host == MODEL_RUNNER {
        return Some(on_default(container));
    }
    let text = match container {
        None if is_unknown && HOST_OF_CONTAINER.contains(&host.as_str()) => {
            return Some(format!(
                "only containers know this name: use http://localhost:{port}"
            ));
        }
        Some(_) if is_unknown && HOST_OF_CONTAINER.contains(&host.as_str()) => {
            "start the exporter's container with --add-host=host.docker.internal:host-gateway \
             (Compose: extra_hosts), or with --network=host and http://localhost:PORT"
        }
        Some(Container::Kubernetes) if is_unknown => {
            "the cluster does not know this name: use SERVICE, or SERVICE.NAMESPACE from another \
             namespace"
        }
        Some(Container::Other) if is_unknown => {
            "this container does not know the name: in Compose, use the name of the server's \
             service, in a network that both share"
        }
        None if is_unknown => {
            "this machine does not know the name: check its spelling (getent hosts NAME)"
        }
        None if base.is_loopback() && port == MODEL_RUNNER_PORT => ENABLE_MODEL_RUNNER,
        None if base.is_loopback() && port == OLLAMA_PORT => {
            "nothing listens there: start Ollama (systemctl start ollama, or ollama serve)"
        }
        None if base.is_loopback() => {
            "nothing listens there: start the server, or give the port that it prints (llama-server: \
             8080 by default, 9931 in b11549)"
        }
        Some(Container::Kubernetes) if base.is_loopback() => {
            "nothing listens there: localhost is the exporter's own pod; for a server in another \
             pod, give http://SERVICE:PORT"
        }
        Some(Container::Other) if base.is_loopback() => {
            "nothing listens there: localhost is this container, unless it was started with \
             --network=host. Use that for a server on the same Linux host, http://SERVICE:PORT in \
             the same Compose project, http://host.docker.internal:PORT on Docker Desktop"
        }
        _ if port == MODEL_RUNNER_PORT => ENABLE_MODEL_RUNNER,
        Some(_) if HOST_OF_CONTAINER.contains(&host.as_str()) => {
            "nothing listens there for containers: start llama-server with --host 0.0.0.0, or the \
             exporter's container with --network=host and http://localhost:PORT"
        }
        _ => {
            "nothing listens at this port: check it, and start llama-server with --host 0.0.0.0, \
             else only its own machine reaches it"
        }
    };
    Some(text.to_owned())
}

/// The advice if the default base URL cannot be reached.
fn on_default(container: Option<Container>) -> String {
    match container {
        None => {
            "this is the default, for containers of Docker Desktop. Give your server: --base-url \
             http://localhost:8080 for llama-server, http://localhost:11434 for Ollama, \
             http://localhost:12434 for Docker Model Runner (Docker Desktop: docker desktop enable \
             model-runner --tcp 12434)"
        }
        Some(Container::Kubernetes) => {
            "this is the default, for Docker Desktop. Set LLAMACPP_BASE_URL: http://localhost:8080 for \
             a llama-server in the same pod, http://SERVICE:8080 for one in another"
        }
        Some(Container::Other) => {
            "this is the default: enable Docker Model Runner in Docker Desktop, or set \
             LLAMACPP_BASE_URL: http://SERVICE:8080 for a llama-server in the same Compose project, \
             http://localhost:8080 with --network=host, http://172.17.0.1:12434 for Docker Model \
             Runner on Docker Engine"
        }
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use RequestErrorKind::{Other, Refused, UnknownHost};

    const PODMAN: Option<Container> = Some(Container::Other);
    const POD: Option<Container> = Some(Container::Kubernetes);

    #[test]
    fn the_advice_fits_the_address_and_where_the_exporter_runs() {
        for (base, kind, container, part) in [
            (
                "http://model-runner.docker.internal/engines/v1",
                UnknownHost,
                None,
                "--base-url http://localhost:8080 for llama-server",
            ),
            (
                "http://model-runner.docker.internal/engines/v1",
                UnknownHost,
                PODMAN,
                "172.17.0.1:12434",
            ),
            (
                "http://model-runner.docker.internal/engines/v1",
                Refused,
                PODMAN,
                "enable Docker Model Runner",
            ),
            (
                "http://model-runner.docker.internal/engines/v1",
                UnknownHost,
                POD,
                "in the same pod",
            ),
            (
                "http://localhost:8080",
                Refused,
                None,
                "the port that it prints",
            ),
            (
                "http://127.0.0.1:8080",
                Refused,
                PODMAN,
                "localhost is this container",
            ),
            ("http://localhost:8080", Refused, POD, "http://SERVICE:PORT"),
            (
                "http://localhost:12434",
                Refused,
                None,
                "enable model-runner --tcp 12434",
            ),
            ("http://localhost:11434", Refused, None, "start Ollama"),
            (
                "http://172.17.0.1:12434",
                Refused,
                PODMAN,
                "enable model-runner --tcp 12434",
            ),
            (
                "http://host.docker.internal:8080",
                UnknownHost,
                None,
                "use http://localhost:8080",
            ),
            (
                "http://host.docker.internal:8080",
                UnknownHost,
                PODMAN,
                "--add-host",
            ),
            (
                "http://host.docker.internal:8080",
                Refused,
                PODMAN,
                "--host 0.0.0.0",
            ),
            ("http://10.0.0.7:8080", Refused, None, "--host 0.0.0.0"),
            ("http://llm:8080", UnknownHost, None, "getent hosts"),
            (
                "http://llm:8080",
                UnknownHost,
                PODMAN,
                "name of the server's service",
            ),
            ("http://llm:8080", UnknownHost, POD, "SERVICE.NAMESPACE"),
        ] {
            let text = on_address(&base.parse().unwrap(), kind, container).unwrap();
            assert!(text.contains(part), "{base} {kind:?} {container:?}: {text}");
            assert!(text.len() <= 300, "the log cuts it: {text}");
        }
    }

    #[test]
    fn other_errors_say_nothing_about_the_address() {
        let base = "http://localhost:8080".parse().unwrap();
        assert_eq!(on_address(&base, Other, None), None);
        let socket = "unix:/run/llama.sock".parse().unwrap();
        assert_eq!(on_address(&socket, Refused, None), None);
    }
}
