//! A simple load balancer: each connection goes to the next server, and the balancer remembers no
//! client.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{io, thread};

/// Listens until it is dropped. Its threads end with their connections.
#[derive(Debug)]
pub struct Balancer {
    address: String,
    stopped: Arc<AtomicBool>,
    /// Which servers get connections only when no other takes them.
    resting: Arc<Vec<AtomicBool>>,
}

impl Balancer {
    /// Spreads connections over these servers. One that refuses a connection is passed over.
    pub fn new(servers: Vec<String>) -> Self {
        let resting: Arc<Vec<AtomicBool>> =
            Arc::new(servers.iter().map(|_| AtomicBool::new(false)).collect());
        let rests = Arc::clone(&resting);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("the listener is bound").to_string();
        let stopped = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stopped);
        thread::spawn(move || {
            for (number, client) in listener.incoming().enumerate() {
                if flag.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(client) = client else { continue };
                let mut turns: Vec<usize> =
                    (0..servers.len()).map(|turn| (number + turn) % servers.len()).collect();
                turns.sort_by_key(|&turn| rests[turn].load(Ordering::SeqCst));
                let turns = turns.into_iter().map(|turn| &servers[turn]);
                if let Some(server) = turns.map(TcpStream::connect).find_map(Result::ok) {
                    // A client whose server fails sees a closed connection, as from any balancer.
                    let _ = join(client, server);
                }
            }
        });
        Self { address, stopped, resting }
    }

    /// Whether a server is to be spared, as balancers do with one that says that it is not ready.
    pub fn set_resting(&self, server: usize, rests: bool) {
        self.resting[server].store(rests, Ordering::SeqCst);
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then sees the flag.
        let _ = TcpStream::connect(&self.address);
    }
}

fn join(client: TcpStream, server: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (client_back, server_back) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || copy(client, server));
    thread::spawn(move || copy(server_back, client_back));
    Ok(())
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    if io::copy(&mut from, &mut to).is_ok() {
        let _ = to.shutdown(Shutdown::Write);
    } else {
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }
}
