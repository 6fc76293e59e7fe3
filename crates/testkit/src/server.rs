//! A small HTTP server on a thread of its own, so that tests without an async runtime can use it.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;

use axum::body::Body;
use axum::http::{Request, Response};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

/// The handler's way to say: close the connection and answer nothing.
#[derive(Debug)]
pub(crate) struct Dropped;

impl fmt::Display for Dropped {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the connection is dropped on purpose")
    }
}

impl std::error::Error for Dropped {}

/// What a handler returns for one request.
pub(crate) type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Dropped>> + Send>>;

/// What a server does with each request.
pub(crate) type Handler = Arc<dyn Fn(Request<Body>) -> Answer + Send + Sync>;

/// A running server; dropping it closes every connection and ends its thread.
pub(crate) struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A port that is bound but not served yet: its address may be told to other servers first.
pub(crate) struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

impl Bound {
    /// Binds a free port of the loopback interface.
    pub(crate) fn new() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// The port that was found free.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Starts to serve, over TLS when a configuration is given.
    pub(crate) fn serve(self, tls: Option<Arc<ServerConfig>>, handler: Handler) -> Server {
        let (stop, stopped) = oneshot::channel();
        let listener = self.listener;
        let thread = std::thread::Builder::new()
            .name(format!("testkit-{}", self.address.port()))
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime of one thread can be made");
                // Dropping the runtime drops the connections with it.
                runtime.block_on(async move {
                    tokio::select! {
                        () = accept(listener, tls, handler) => {}
                        _ = stopped => {}
                    }
                });
            })
            .expect("a thread can be started");
        Server {
            address: self.address,
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Server {
    /// The port it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the server thread has been printed already; a second one here would abort.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, tls: Option<Arc<ServerConfig>>, handler: Handler) {
    let listener =
        tokio::net::TcpListener::from_std(listener).expect("the listener is non-blocking");
    let acceptor = tls.map(TlsAcceptor::from);
    loop {
        // An accept error is the client's doing (it went away before it was accepted).
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let handler = Arc::clone(&handler);
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            match acceptor {
                None => serve_connection(stream, handler).await,
                Some(acceptor) => {
                    // A client that does not trust the authority ends the handshake; that is its right.
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve_connection(stream, handler).await;
                    }
                }
            }
        });
    }
}

async fn serve_connection<S>(stream: S, handler: Handler)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let service =
        service_fn(move |request: Request<hyper::body::Incoming>| handler(request.map(Body::new)));
    // The error is either a client that went away or a connection dropped on purpose.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
