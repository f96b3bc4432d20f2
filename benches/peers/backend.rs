//! The fake IMAP backend that all candidates stand in front of: fast, without a mailbox, a process of its own.
//!
//! It speaks what the workloads need: `FETCH n BODY[]` answers with a literal of `n` bytes of [`Pattern`], APPEND
//! compares what it gets with the same pattern and answers NO if a byte is wrong. Beside it listens the answerer
//! that nginx mail asks for every login (`auth_http`). Both addresses are printed on the first line.

use std::io;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::pattern::Pattern;

const CAPABILITIES: &str =
    "IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ STARTTLS AUTH=PLAIN";
const LINE: usize = 64 * 1024;

/// Serves until standard input ends.
pub fn run() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let imap = crate::relays::listen(0)?;
        let auth = crate::relays::listen(0)?;
        let port = imap.local_addr()?.port();
        println!("{port} {}", auth.local_addr()?.port());
        tokio::spawn(serve(imap, session));
        tokio::spawn(serve(auth, move |stream| answer_auth(stream, port)));
        crate::relays::until_parent_ends().await;
        Ok(())
    })
}

async fn serve<F>(listener: TcpListener, handle: impl Fn(TcpStream) -> F + Send + 'static)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            tokio::spawn(handle(stream));
        }
    }
}

/// nginx mail asks who serves this user: we do.
async fn answer_auth(stream: TcpStream, port: u16) -> io::Result<()> {
    let mut stream = BufReader::with_capacity(2048, stream);
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 2 {
        line.clear();
    }
    let answer = format!(
        "HTTP/1.0 200 OK\r\nAuth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: {port}\r\n\r\n"
    );
    stream.get_mut().write_all(answer.as_bytes()).await?;
    stream.get_mut().shutdown().await
}

async fn session(stream: TcpStream) -> io::Result<()> {
    // Larger reads than the buffer go past it, so uploads take few system calls.
    let mut stream = BufReader::with_capacity(1024, stream);
    let greeting = format!("* OK [CAPABILITY {CAPABILITIES}] ready\r\n");
    stream.get_mut().write_all(greeting.as_bytes()).await?;
    let mut line = Vec::new();
    while read_line(&mut stream, &mut line).await? {
        let text = String::from_utf8_lossy(&line).into_owned();
        let mut words = text.split_ascii_whitespace();
        let (tag, verb) = (words.next().unwrap_or("*"), words.next().unwrap_or_default());
        let reply = match verb.to_ascii_uppercase().as_str() {
            "APPEND" => append(&mut stream, tag, &text).await?,
            "FETCH" => {
                let size = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
                fetch(stream.get_mut(), tag, size).await?;
                continue;
            }
            "LOGIN" => {
                literals(&mut stream, &mut line).await?;
                format!("{tag} OK [CAPABILITY {CAPABILITIES}] logged in\r\n")
            }
            "AUTHENTICATE" => {
                if words.nth(1).is_none() {
                    stream.get_mut().write_all(b"+ \r\n").await?;
                    read_line(&mut stream, &mut line).await?;
                }
                format!("{tag} OK [CAPABILITY {CAPABILITIES}] logged in\r\n")
            }
            "CAPABILITY" => format!("* CAPABILITY {CAPABILITIES}\r\n{tag} OK done\r\n"),
            "ID" => format!("* ID (\"name\" \"fake\")\r\n{tag} OK done\r\n"),
            "SELECT" => format!(
                "* FLAGS (\\Seen)\r\n* 3 EXISTS\r\n* 0 RECENT\r\n* OK [UIDVALIDITY 1] valid\r\n\
                 * OK [UIDNEXT 4] next\r\n{tag} OK [READ-WRITE] selected\r\n"
            ),
            "IDLE" => {
                stream.get_mut().write_all(b"+ idling\r\n").await?;
                read_line(&mut stream, &mut line).await?;
                format!("{tag} OK done\r\n")
            }
            "NOOP" => format!("{tag} OK done\r\n"),
            "LOGOUT" => {
                let bye = format!("* BYE bye\r\n{tag} OK done\r\n");
                stream.get_mut().write_all(bye.as_bytes()).await?;
                break;
            }
            _ => format!("{tag} BAD what\r\n"),
        };
        stream.get_mut().write_all(reply.as_bytes()).await?;
    }
    stream.get_mut().shutdown().await
}

/// One line without its end into `line`; false at the end of the stream.
async fn read_line(stream: &mut BufReader<TcpStream>, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let n = (&mut *stream).take(LINE as u64).read_until(b'\n', line).await?;
    while line.last().is_some_and(u8::is_ascii_control) {
        line.pop();
    }
    Ok(n > 0)
}

/// The size of the literal that `line` announces, and whether its sender waits for a `+`.
fn announced(line: &str) -> Option<(u64, bool)> {
    let inside = line.strip_suffix('}')?.rsplit_once('{')?.1;
    let digits = inside.trim_end_matches('+');
    Some((digits.parse().ok()?, digits.len() == inside.len()))
}

/// What follows a LOGIN whose strings are literals.
async fn literals(stream: &mut BufReader<TcpStream>, line: &mut Vec<u8>) -> io::Result<()> {
    while let Some((size, waits)) = announced(&String::from_utf8_lossy(line)) {
        if waits {
            stream.get_mut().write_all(b"+ go\r\n").await?;
        }
        tokio::io::copy(&mut (&mut *stream).take(size), &mut tokio::io::sink()).await?;
        read_line(stream, line).await?;
    }
    Ok(())
}

async fn fetch(stream: &mut TcpStream, tag: &str, size: u64) -> io::Result<()> {
    let head = format!("* 1 FETCH (BODY[] {{{size}}}\r\n");
    let tail = format!(")\r\n{tag} OK done\r\n");
    if size <= 64 * 1024 {
        let body = Pattern::slice(0, size as usize);
        let whole = [head.as_bytes(), body, tail.as_bytes()].concat();
        return stream.write_all(&whole).await;
    }
    stream.write_all(head.as_bytes()).await?;
    let mut at = 0;
    while at < size {
        let chunk = Pattern::slice(at, usize::try_from(size - at).unwrap_or(usize::MAX));
        stream.write_all(chunk).await?;
        at += chunk.len() as u64;
    }
    stream.write_all(tail.as_bytes()).await
}

async fn append(stream: &mut BufReader<TcpStream>, tag: &str, line: &str) -> io::Result<String> {
    let Some((size, waits)) = announced(line) else {
        return Ok(format!("{tag} BAD no literal\r\n"));
    };
    if waits {
        stream.get_mut().write_all(b"+ go\r\n").await?;
    }
    // Only for as long as the upload takes: thousands of sessions wait in IDLE.
    let mut buffer = vec![0; 256 * 1024];
    let (mut at, mut intact) = (0, true);
    while at < size {
        let room = buffer.len().min(usize::try_from(size - at).unwrap_or(usize::MAX));
        let n = stream.read(&mut buffer[..room]).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        intact &= Pattern::matches(at, &buffer[..n]);
        at += n as u64;
    }
    read_line(stream, &mut Vec::new()).await?;
    Ok(if intact { format!("{tag} OK done\r\n") } else { format!("{tag} NO other bytes\r\n") })
}
