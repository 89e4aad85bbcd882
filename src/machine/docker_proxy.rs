//! The forwarding of a port to a container, as the arguments of `docker-proxy` say.

use std::net::IpAddr;

use crate::machine::procfs::Procfs;

/// A port of the machine that leads to a port of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardedPort {
    host_ip: IpAddr,
    host_port: u16,
    /// The address of the container.
    pub ip: IpAddr,
    /// The port that is listened on in the container.
    pub port: u16,
}

impl ForwardedPort {
    /// What the process `pid` forwards, if it is root's `docker-proxy`.
    pub fn of(procfs: &Procfs, pid: u32) -> Option<ForwardedPort> {
        let words = procfs.command_line(pid).ok()?;
        let forwarded = ForwardedPort::parse(&words)?;
        let uid = procfs.status(pid)?.uid;
        (uid == Some(0)).then_some(forwarded)
    }

    fn parse(words: &[String]) -> Option<ForwardedPort> {
        let (program, arguments) = words.split_first()?;
        let value = |name: &str| {
            let mut pairs = arguments.iter().zip(arguments.iter().skip(1));
            pairs.find_map(|(flag, value)| (flag == name).then_some(value.as_str()))
        };
        if program.rsplit('/').next() != Some("docker-proxy") || value("-proto") != Some("tcp") {
            return None;
        }
        Some(ForwardedPort {
            host_ip: value("-host-ip")?.parse().ok()?,
            host_port: value("-host-port")?.parse().ok()?,
            ip: value("-container-ip")?.parse().ok()?,
            port: value("-container-port")?.parse().ok()?,
        })
    }

    /// Whether a connection to this address and port of the machine is forwarded.
    pub fn accepts(&self, address: IpAddr, port: u16) -> bool {
        let is_any = self.host_ip.is_unspecified() && self.host_ip.is_ipv4() == address.is_ipv4();
        port == self.host_port && (is_any || address == self.host_ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_say_what_is_forwarded() {
        let parsed = |line: &str| {
            let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
            ForwardedPort::parse(&words)
        };
        let line = "/usr/bin/docker-proxy -proto tcp -host-ip 0.0.0.0 -host-port 12434 \
                    -container-ip 172.17.0.2 -container-port 80 -use-listen-fd";
        let forwarded = parsed(line).unwrap();
        assert_eq!((forwarded.ip, forwarded.port), ([172, 17, 0, 2].into(), 80));
        assert!(forwarded.accepts([127, 0, 0, 1].into(), 12434));
        assert!(!forwarded.accepts([127, 0, 0, 1].into(), 80));
        assert!(!forwarded.accepts("::1".parse().unwrap(), 12434));
        let one = parsed(&line.replace("0.0.0.0", "127.0.0.1")).unwrap();
        assert!(one.accepts([127, 0, 0, 1].into(), 12434));
        assert!(!one.accepts([172, 17, 0, 1].into(), 12434));
        for other in [
            line.replace("docker-proxy", "proxy"),
            line.replace("tcp", "udp"),
            line.replace("-host-port", "-x"),
        ] {
            assert_eq!(parsed(&other), None, "{other}");
        }
    }
}
