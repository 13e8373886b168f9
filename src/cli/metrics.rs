//! `--metrics ADDR`: the numbers of a running migration as Prometheus text.

use crate::error::{Error, ErrorKind, Result};
use crate::migrate::progress::{Progress, ShardView};
use crate::task::Shutdown;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How long one scrape may take.
const PATIENCE: Duration = Duration::from_secs(2);

pub async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| {
        Error::new(ErrorKind::Usage, format!("serve metrics at {address}"))
            .cause(e)
            .hint("choose another address for --metrics")
    })
}

/// Answers scrapes, one after the other, until a stop is asked for.
pub async fn serve(listener: TcpListener, progress: Arc<Progress>, stop: Shutdown) -> Result<()> {
    loop {
        tokio::select! {
            () = stop.wait() => return Ok(()),
            accepted = listener.accept() => {
                // A scrape that fails is the scraper's business.
                if let Ok((socket, _)) = accepted {
                    let _ = tokio::time::timeout(PATIENCE, answer(socket, &progress)).await;
                }
            }
        }
    }
}

async fn answer(mut socket: TcpStream, progress: &Progress) -> std::io::Result<()> {
    let mut request = [0u8; 4096];
    let n = socket.read(&mut request).await?;
    let known = request
        .get(..n)
        .unwrap_or_default()
        .starts_with(b"GET /metrics");
    let (status, body) = if known {
        ("200 OK", render(&progress.views()))
    } else {
        ("404 Not Found", "see /metrics\n".into())
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await?;
    socket.write_all(body.as_bytes()).await?;
    socket.shutdown().await
}

fn render(views: &[ShardView]) -> String {
    type Read = fn(&ShardView) -> u64;
    let series: [(&str, &str, &str, Read); 6] = [
        (
            "keyferry_snapshot_bytes_done",
            "gauge",
            "Bytes of the snapshot that were read.",
            |v| v.bytes_done,
        ),
        (
            "keyferry_snapshot_bytes",
            "gauge",
            "Size of the snapshot, 0 while unknown.",
            |v| v.bytes_total,
        ),
        (
            "keyferry_keys_written_total",
            "counter",
            "Keys written to the target.",
            |v| v.keys,
        ),
        (
            "keyferry_commands_applied_total",
            "counter",
            "Commands of the stream applied to the target.",
            |v| v.commands,
        ),
        (
            "keyferry_lag_bytes",
            "gauge",
            "Bytes of the stream that wait to be applied.",
            |v| v.lag_bytes,
        ),
        (
            "keyferry_lag_milliseconds",
            "gauge",
            "Age of the oldest of them.",
            |v| v.lag_ms,
        ),
    ];
    let mut text = String::new();
    // Writing to a String cannot fail.
    for (name, kind, help, read) in series {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for view in views {
            let _ = writeln!(
                text,
                "{name}{{shard=\"{}\",address={:?}}} {}",
                view.shard,
                view.address,
                read(view)
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::progress::ShardProgress;
    use crate::types::ShardId;

    #[tokio::test]
    async fn a_scrape_gets_the_numbers_of_each_shard() {
        let progress = Arc::new(Progress::default());
        progress.set_shards(vec![Arc::new(ShardProgress::new(ShardId(3), "h:1".into()))]);
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Shutdown::default();
        let scrape = async {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket
                .write_all(b"GET /metrics HTTP/1.1\r\n\r\n")
                .await
                .unwrap();
            let mut text = String::new();
            socket.read_to_string(&mut text).await.unwrap();
            stop.request();
            text
        };
        let (served, text) = tokio::join!(serve(listener, progress, stop.clone()), scrape);
        served.unwrap();
        assert!(
            text.starts_with("HTTP/1.1 200 OK")
                && text.contains("keyferry_lag_bytes{shard=\"3\",address=\"h:1\"} 0\n"),
            "{text}"
        );
        assert_eq!(
            listen(address).await.map(drop).err().map(|e| e.exit_code()),
            None,
            "the port is free again"
        );
    }
}
