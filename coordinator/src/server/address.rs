//! Where a coordinator listens, and where it says that it is.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    str::FromStr,
};

/// Addresses of this host that are told at most: workers try them in turn, and each may take seconds.
const MOST: usize = 8;

/// Where workers reach a coordinator: not always the address at which it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertised {
    host: String,
    port: Option<u16>,
}

impl FromStr for Advertised {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unclear = || format!("`{text}` is neither HOST nor HOST:PORT; an IPv6 address with a port has brackets");
        if text.contains('%') {
            return Err(format!("`{text}` has a zone, which means nothing on another host"));
        }
        if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return Self::of(address, None);
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Self::of(address.ip(), Some(address.port()).filter(|port| *port != 0).ok_or_else(unclear)?.into());
        }
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok().filter(|port| *port != 0).ok_or_else(unclear)?)),
            None => (text, None),
        };
        let is_name = |name: &str| name.chars().all(|char| char.is_ascii_alphanumeric() || "-._".contains(char));
        match !host.is_empty() && is_name(host) {
            true => Ok(Self { host: host.to_owned(), port }),
            false => Err(unclear()),
        }
    }
}

impl Advertised {
    fn of(address: IpAddr, port: Option<u16>) -> Result<Self, String> {
        if address.is_unspecified() {
            return Err(format!("{address} is where to listen, and no place to be reached at"));
        }
        Ok(Self { host: bracketed(address), port })
    }

    fn at(&self, port: u16) -> String {
        format!("https://{}:{}", self.host, self.port.unwrap_or(port))
    }
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// Where a coordinator is tried, in this order: where it is said to be, else where it listens. What listens everywhere is
/// tried by the host's name, which not everybody may know, and by its addresses.
pub(super) fn addresses(bound: SocketAddr, advertised: &[Advertised]) -> Vec<String> {
    let port = bound.port();
    if !advertised.is_empty() {
        return advertised.iter().map(|advertised| advertised.at(port)).collect();
    }
    let mut addresses = vec![format!("https://{}", reached_at(bound))];
    if bound.ip().is_unspecified() {
        let own = own_addresses().into_iter().filter(|address| bound.is_ipv6() || address.is_ipv4());
        addresses.extend(own.map(|address| format!("https://{}:{port}", bracketed(address))));
    }
    addresses
}

/// Where others reach what listens at an address: by the host's name if it listens everywhere.
pub(crate) fn reached_at(bound: SocketAddr) -> String {
    if !bound.ip().is_unspecified() {
        return bound.to_string();
    }
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{name}:{}", bound.port())
}

/// This host's addresses: those from which it reaches others first, and then those of all interfaces. No way in which
/// workers come is known here, so that each is worth a try.
fn own_addresses() -> Vec<IpAddr> {
    // Addresses of documentation stand for others: nothing is sent.
    let targets: [(IpAddr, IpAddr); 2] = [
        (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()),
    ];
    let from = |(any, target): (IpAddr, IpAddr)| {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((target, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let (v4, v6) = (read("/proc/net/fib_trie"), read("/proc/net/if_inet6"));
    let all = targets.into_iter().filter_map(from).chain(local_v4(&v4)).chain(global_v6(&v6));
    let mut own = Vec::new();
    for address in all.filter(|address| !address.is_unspecified() && !address.is_loopback()) {
        if !own.contains(&address) && own.len() < MOST {
            own.push(address);
        }
    }
    own
}

/// What the kernel's table of routes has as addresses of this host.
fn local_v4(table: &str) -> impl Iterator<Item = IpAddr> {
    let mut last = None;
    table.lines().filter_map(move |line| {
        if let Some((_, address)) = line.split_once("|-- ") {
            last = address.trim().parse::<IpAddr>().ok();
            return None;
        }
        last.filter(|_| line.contains("/32 host LOCAL"))
    })
}

/// What the kernel's list of addresses has that hold beyond one link.
fn global_v6(list: &str) -> impl Iterator<Item = IpAddr> {
    list.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (address, scope) = (fields.next()?, fields.nth(2)?);
        let address = u128::from_str_radix(address, 16).ok().filter(|_| scope == "00")?;
        Some(Ipv6Addr::from(address).into())
    })
}

/// Where to listen so that every host reaches it, by whichever protocol.
pub fn everywhere() -> IpAddr {
    let both = std::fs::read_to_string("/proc/sys/net/ipv6/bindv6only").is_ok_and(|only| only.trim() == "0");
    match both && TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok() {
        true => Ipv6Addr::UNSPECIFIED.into(),
        false => Ipv4Addr::UNSPECIFIED.into(),
    }
}

/// What to do about an address at which nobody can listen.
pub(super) fn remedy(address: &SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable => {
            ": this host has no such address; --listen takes one that `ip address` shows, and --advertise what workers \
             reach it by"
                .to_owned()
        }
        io::ErrorKind::AddrInUse => format!(
            ": another program has port {}; take another one with --listen, or none for any that is free",
            address.port()
        ),
        io::ErrorKind::PermissionDenied => ": ports below 1024 are root's".to_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_advertised_is_a_host_or_an_address_with_or_without_a_port() {
        let at = |text: &str| text.parse::<Advertised>().map(|advertised| advertised.at(7));
        let good = [
            ("head.example.org", "https://head.example.org:7"),
            ("head:80", "https://head:80"),
            ("10.0.0.1", "https://10.0.0.1:7"),
            ("10.0.0.1:80", "https://10.0.0.1:80"),
            ("::1", "https://[::1]:7"),
            ("[2001:db8::2]", "https://[2001:db8::2]:7"),
            ("[2001:db8::2]:80", "https://[2001:db8::2]:80"),
        ];
        for (text, expected) in good {
            assert_eq!(at(text).as_deref(), Ok(expected), "{text}");
        }
        for text in
            ["", ":80", "host:", "host:0", "host:port", "host:70000", "a b", "https://host", "fe80::1%eth0", "::"]
        {
            assert!(at(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_hosts_addresses_are_read_from_the_kernels_tables() {
        let table = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n        |-- 10.77.0.1\n           \
                     /32 host LOCAL\n        |-- 10.77.0.255\n           /32 link BROADCAST\n";
        assert_eq!(local_v4(table).collect::<Vec<_>>(), ["10.77.0.1".parse::<IpAddr>().unwrap()]);
        let list = "00000000000000000000000000000001 01 80 10 80       lo\n\
                    fd770000000000000000000000000001 02 40 00 80     eth0\n\
                    fe80000000000000000000fffe000001 02 40 20 80     eth0\n";
        assert_eq!(global_v6(list).collect::<Vec<_>>(), ["fd77::1".parse::<IpAddr>().unwrap()]);
        assert!(own_addresses().iter().all(|address| !address.is_loopback()));
    }

    #[test]
    fn what_listens_at_one_address_is_there_unless_it_is_said_to_be_elsewhere() {
        let one: SocketAddr = "[::1]:80".parse().unwrap();
        assert_eq!(addresses(one, &[]), ["https://[::1]:80"]);
        let said = ["a:1", "b"].map(|text| text.parse().unwrap());
        assert_eq!(addresses(one, &said), ["https://a:1", "https://b:80"]);
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let all = addresses("0.0.0.0:80".parse().unwrap(), &[]);
        assert_eq!(all[0], format!("https://{name}:80"));
        assert!(all[1..].iter().all(|address| !address.contains('[')), "{all:?}");
    }
}
