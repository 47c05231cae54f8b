import { execa } from 'execa';
import { mkdir, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { pause } from '../../../shared/abort.ts';

export const HOW_TO_INSTALL = 'apt-get install haproxy nginx-light';
const READY_WITHIN_MS = 10_000;
/** Debian has both in a directory that is not in everybody's PATH. */
const PREFIXES = ['', '/usr/sbin/', '/usr/local/sbin/'];

export type PeerKind = 'haproxy' | 'nginx';

/** A load balancer in front of the engines, as a process of its own with nothing but our configuration. */
export class Peer implements AsyncDisposable {
  readonly socketPath: string;
  readonly version: string;
  readonly #child: ReturnType<typeof spawnPeer>;

  private constructor(o: { socketPath: string; version: string; child: ReturnType<typeof spawnPeer> }) {
    this.socketPath = o.socketPath;
    this.version = o.version;
    this.#child = o.child;
  }

  /** Undefined where the program is not installed. */
  static async start(
    kind: PeerKind,
    o: { directory: string; ports: readonly number[]; signal: AbortSignal },
  ): Promise<Peer | undefined> {
    const found = await programOf(kind);
    if (found === undefined) return undefined;
    const { program, version } = found;
    const directory = join(o.directory, kind);
    await mkdir(directory, { recursive: true });
    const socketPath = join(directory, 'socket'); // no port that somebody else could take first
    const file = join(directory, 'config');
    await writeFile(file, CONFIGS[kind]({ directory, socketPath, ports: o.ports }));
    const child = spawnPeer(kind, { program, file, directory });
    const peer = new Peer({ socketPath, version, child });
    try {
      await peer.#listens(kind, o.signal);
      return peer;
    } catch (error) {
      await peer[Symbol.asyncDispose]();
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill('SIGTERM');
    await this.#child;
  }

  async #listens(kind: PeerKind, signal: AbortSignal): Promise<void> {
    for (const untilMs = performance.now() + READY_WITHIN_MS; performance.now() < untilMs;) {
      if (this.#child.exitCode !== null) {
        const { stderr } = await this.#child;
        throw new Error(`${kind} ended with ${this.#child.exitCode}: ${stderr}`);
      }
      if (await answers(this.socketPath)) return;
      await pause(50, signal);
      signal.throwIfAborted();
    }
    throw new Error(`${kind} does not listen`);
  }
}

type ConfigOptions = { directory: string; socketPath: string; ports: readonly number[] };

/** PURE. The whole configuration of each: the plainest that does what its name in the table says. */
export const CONFIGS: Record<PeerKind, (o: ConfigOptions) => string> = {
  haproxy: ({ socketPath, ports }) => `global
  maxconn 1000
defaults
  mode http
  timeout connect 5s
  timeout client 300s
  timeout server 300s
  timeout queue 300s
frontend clients
  bind unix@${socketPath}
  default_backend engines
backend engines
  balance leastconn
${ports.map((port, index) => `  server engine${index} 127.0.0.1:${port} maxconn 1\n`).join('')}`,
  nginx: ({ directory, socketPath, ports }) => `daemon off;
master_process off;
pid ${directory}/pid;
error_log stderr warn;
events { worker_connections 1000; }
http {
  access_log off;
  client_body_temp_path ${directory}/body;
  proxy_temp_path ${directory}/proxy;
  fastcgi_temp_path ${directory}/fastcgi;
  uwsgi_temp_path ${directory}/uwsgi;
  scgi_temp_path ${directory}/scgi;
  upstream engines {
    least_conn;
${ports.map((port) => `    server 127.0.0.1:${port};\n`).join('')}  }
  server {
    listen unix:${socketPath};
    client_max_body_size 20m;
    location / {
      proxy_pass http://engines;
      proxy_read_timeout 300s;
      proxy_next_upstream off;
    }
  }
}
`,
};

async function programOf(kind: PeerKind): Promise<{ program: string; version: string } | undefined> {
  for (const prefix of PREFIXES) {
    const asked = await execa(`${prefix}${kind}`, ['-v'], { reject: false, all: true });
    const version = /\d+\.\d+[.\d]*/.exec(asked.all ?? '')?.[0];
    if (asked.exitCode === 0 && version !== undefined) return { program: `${prefix}${kind}`, version };
  }
  return undefined;
}

function spawnPeer(kind: PeerKind, o: { program: string; file: string; directory: string }) {
  const args = kind === 'haproxy' ? ['-db', '-f', o.file] : ['-p', o.directory, '-c', o.file, '-e', 'stderr'];
  return execa(o.program, args, { stdin: 'ignore', stdout: 'ignore', stderr: 'pipe', reject: false });
}

async function answers(path: string): Promise<boolean> {
  return await new Promise((resolve) => {
    const socket = connect(path);
    const end = (isUp: boolean) => () => {
      socket.destroy();
      resolve(isUp);
    };
    socket.once('connect', end(true)).once('error', end(false));
  });
}
