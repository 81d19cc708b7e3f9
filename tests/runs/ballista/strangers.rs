//! Who has not the run's key is let in by no port.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
};

use arrow_flight::{Criteria, flight_service_client::FlightServiceClient};
use ballista_core::serde::protobuf::{GetJobStatusParams, scheduler_grpc_client::SchedulerGrpcClient};
use rustix::process::Pid;
use tonic::{
    Code,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::Long;

/// How somebody calls a port: with what of the run's.
pub(crate) fn caller(address: &str, certificate: &str, key: Option<(&str, &str)>) -> Channel {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(certificate)).domain_name("forebay");
    let tls = match key {
        Some((certificate, key)) => tls.identity(Identity::from_pem(certificate, key)),
        None => tls,
    };
    Endpoint::from_shared(address.to_owned()).unwrap().tls_config(tls).unwrap().connect_lazy()
}

/// The ports on which a process listens on this host.
fn ports(pid: Pid) -> Vec<u16> {
    let pid = pid.as_raw_nonzero();
    let sockets: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .filter_map(|fd| {
            let target = fs::read_link(fd.path()).ok()?.to_str()?.to_owned();
            Some(target.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            // State 0A is that of listening: proc(5).
            let is_its = fields[3] == "0A" && sockets.iter().any(|socket| socket == fields[9]);
            assert!(!is_its || fields[1].starts_with("0100007F:"), "it listens elsewhere: {line}");
            is_its.then(|| u16::from_str_radix(fields[1].split_once(':').unwrap().1, 16).unwrap())
        })
        .collect()
}

/// What a port answers to who speaks no TLS.
fn answer(port: u16, said: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(said).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    // It may well end with a reset.
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_not_the_run_s_key_is_refused_by_each_port() {
    let long = Long::begin().await;
    let link = long.link();
    let shared = &link["cluster"];
    let of = |name: &str| shared[name].as_str().unwrap();
    let (address, certificate, key) = (of("address"), of("certificate"), of("key"));
    let other = rcgen::generate_simple_self_signed(["forebay".to_owned()]).unwrap();
    let (other_certificate, other_key) = (other.cert.pem(), other.signing_key.serialize_pem());
    let strangers = [None, Some((other_certificate.as_str(), other_key.as_str()))];

    let ask = async |key| {
        let mut scheduler = SchedulerGrpcClient::new(caller(address, certificate, key));
        scheduler.get_job_status(GetJobStatusParams { job_id: "none".to_owned() }).await.map(drop)
    };
    ask(Some((certificate, key))).await.unwrap();
    for stranger in strangers {
        let refused = ask(stranger).await.unwrap_err();
        assert!(std::error::Error::source(&refused).is_some(), "by the transport, and not by the service: {refused:?}");
    }

    let scheduler = address.rsplit(':').next().unwrap().parse().unwrap();
    let executors = long.workers.iter().flat_map(|worker| ports(worker.pid()));
    for port in executors.chain([scheduler]) {
        for garbage in [
            &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..],
            &[0x16, 3, 1, 0, 4, 1, 0, 0, 0],
            &[0xff; 4096],
        ] {
            let answer = answer(port, garbage);
            // An alert of TLS, of seven bytes, and no more.
            assert!(answer.is_empty() || (answer.len() == 7 && answer[0] == 0x15), "{answer:?}");
        }
    }

    for worker in &long.workers {
        let ports = ports(worker.pid());
        assert_eq!(ports.len(), 1, "an executor's");
        let address = format!("https://127.0.0.1:{}", ports[0]);
        let ask = async |key| {
            let mut executor = FlightServiceClient::new(caller(&address, certificate, key));
            executor.list_flights(Criteria::default()).await.map(drop)
        };
        // It is let in, and the service has nothing of the kind.
        assert_eq!(ask(Some((certificate, key))).await.unwrap_err().code(), Code::Unimplemented);
        for stranger in strangers {
            let refused = ask(stranger).await.unwrap_err();
            assert_ne!(refused.code(), Code::Unimplemented, "{refused:?}");
        }
    }
    let result = long.coordinator.outcome().json(0);
    assert_eq!(result["tasks"]["attempts"], 1, "nobody was disturbed: {result}");
}
