//! What stands between a client and a fake registry on real networks: an end of TLS that asks for
//! certificates, and a proxy.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use crate::tls::{Authority, ClientFiles};

/// The head of a request to a proxy; it has no more than a handful of headers in these tests.
const LARGEST_HEAD: usize = 16 * 1024;

/// Takes connections of TLS and hands what comes on to a server of plain HTTP.
///
/// It serves `localhost`, `127.0.0.1` and, for those who come through a [`Proxy`], `registry.test`.
/// Clients must show a certificate that [`Self::client_certificate`] gives.
#[derive(Debug)]
pub struct TlsEnd {
    authority: Authority,
    client: ClientFiles,
    listener: Listener,
}

impl TlsEnd {
    /// Starts one before the server at `host`, `127.0.0.1:PORT`.
    ///
    /// # Panics
    /// When no certificate can be made or no port be bound.
    pub fn before(host: &str) -> Self {
        let authority = Authority::new().expect("certificates can be made");
        let (client, config) = authority.demanding().expect("certificates can be made");
        let acceptor = TlsAcceptor::from(config);
        let behind = host.to_owned();
        let listener = Listener::start(move |stream| {
            let (acceptor, behind) = (acceptor.clone(), behind.clone());
            async move {
                // Whoever shows no certificate is left where the handshake fails.
                if let Ok(stream) = acceptor.accept(stream).await {
                    pass_on(stream, &behind).await;
                }
            }
        });
        Self {
            authority,
            client,
            listener,
        }
    }

    /// The registry part of references: `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.listener.address.to_string()
    }

    /// The PEM file of the authority that signed its certificate.
    pub fn ca_certificate(&self) -> PathBuf {
        self.authority.path()
    }

    /// The PEM files of a certificate that it takes, and of the key.
    pub fn client_certificate(&self) -> (PathBuf, PathBuf) {
        (self.client.certificate.clone(), self.client.key.clone())
    }
}

/// A proxy of HTTP that leads everywhere to one server, and remembers what it was asked.
#[derive(Debug)]
pub struct Proxy {
    listener: Listener,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Starts one that leads to the server at `host`, `127.0.0.1:PORT`, whatever it is asked for.
    /// Given a user and password, it lets in nobody else.
    ///
    /// # Panics
    /// When no port can be bound.
    pub fn to(host: &str, user: Option<(&str, &str)>) -> Self {
        let behind = host.to_owned();
        let wanted = user.map(|(name, password)| {
            format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
        });
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&asked);
        let listener = Listener::start(move |stream| {
            let (behind, wanted) = (behind.clone(), wanted.clone());
            let heard = Arc::clone(&heard);
            async move { proxy(stream, &behind, wanted.as_deref(), &heard).await }
        });
        Self { listener, asked }
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.listener.address.to_string()
    }

    /// The first lines of the requests that began connections, as they came: `CONNECT a.b:443
    /// HTTP/1.1`, or `GET http://a.b/v2/ HTTP/1.1`.
    pub fn asked(&self) -> Vec<String> {
        lock(&self.asked).clone()
    }
}

fn lock(asked: &Mutex<Vec<String>>) -> MutexGuard<'_, Vec<String>> {
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn proxy(
    mut stream: TcpStream,
    behind: &str,
    wanted: Option<&str>,
    asked: &Mutex<Vec<String>>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < LARGEST_HEAD {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let line = text.lines().next().unwrap_or_default().to_owned();
    let tunnels = line.starts_with("CONNECT ");
    lock(asked).push(line);
    let shown = text
        .lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("proxy-authorization"))
        .map(|(_, value)| value);
    if wanted.is_some_and(|wanted| shown != Some(wanted)) {
        let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\n\
                       proxy-authenticate: Basic realm=\"testkit\"\r\n\
                       content-length: 0\r\nconnection: close\r\n\r\n";
        let _ = stream.write_all(refusal.as_bytes()).await;
        return;
    }
    let Ok(mut server) = TcpStream::connect(behind).await else {
        return;
    };
    let begun = if tunnels {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await
    } else {
        // Servers understand the whole address in the first line as well (RFC 9112, section 3.2.2).
        server.write_all(&head).await
    };
    if begun.is_ok() {
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut server).await;
    }
}

async fn pass_on(mut stream: impl AsyncRead + AsyncWrite + Unpin, behind: &str) {
    if let Ok(mut server) = TcpStream::connect(behind).await {
        // Either end may go away at any time.
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut server).await;
    }
}

/// A port with a thread that serves it; dropping it closes every connection and ends the thread.
#[derive(Debug)]
struct Listener {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    fn start<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let bind = || -> io::Result<_> {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, address) = bind().expect("a loopback port is free");
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(format!("testkit-{}", address.port()))
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime of one thread can be made");
                // Dropping the runtime drops the connections with it.
                runtime.block_on(async move {
                    let listener = tokio::net::TcpListener::from_std(listener)
                        .expect("the listener is non-blocking");
                    let accept = async {
                        loop {
                            if let Ok((stream, _)) = listener.accept().await {
                                tokio::spawn(serve(stream));
                            }
                        }
                    };
                    tokio::select! {
                        () = accept => {}
                        _ = stopped => {}
                    }
                });
            })
            .expect("a thread can be started");
        Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed already; a second one here would abort.
            let _ = thread.join();
        }
    }
}
