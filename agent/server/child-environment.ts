import { join } from 'node:path';

/** What any program may need of the agent's own environment. Everything else, tokens and systemd's sockets included, stays. */
const ALLOWED = [
  ...['PATH', 'HOME', 'USER', 'LOGNAME', 'LANG', 'LC_ALL', 'TZ', 'TMPDIR', 'LD_LIBRARY_PATH'],
  // How it reaches the hub, where the host may not do so by itself.
  ...['HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY', 'NO_PROXY', 'http_proxy', 'https_proxy', 'all_proxy', 'no_proxy'],
  ...['SSL_CERT_FILE', 'SSL_CERT_DIR', 'REQUESTS_CA_BUNDLE', 'CURL_CA_BUNDLE'],
];
const ALLOWED_TO_SERVERS = /^(HF_|CUDA_)/;
/** What systemctl and docker find their daemons by. */
const ALLOWED_TO_PROGRAMS = ['XDG_RUNTIME_DIR', 'DBUS_SESSION_BUS_ADDRESS', 'DOCKER_HOST', 'DOCKER_CONTEXT'];

/** Where an engine keeps what it made or fetched, below the cache directory that systemd gave to the agent. */
const CACHES: Readonly<Record<string, string>> = {
  XDG_CACHE_HOME: '',
  HF_HOME: 'hf',
  TRITON_CACHE_DIR: 'triton',
  TORCHINDUCTOR_CACHE_DIR: 'inductor',
  VLLM_CACHE_ROOT: 'vllm',
};

type Environment = Readonly<Record<string, string | undefined>>;

/**
 * The environment of a server: the allowed part of ours, the engine's settings, what is known of its weights, and the
 * model's own, which wins.
 */
export function childEnvironment({
  gpus,
  engine,
  weights = {},
  model,
  // eslint-disable-next-line no-restricted-properties -- not configuration: what the child inherits of this process
  ours = process.env,
}: {
  gpus: readonly string[];
  engine: Record<string, string>;
  weights?: Record<string, string>;
  model: Record<string, string>;
  ours?: Environment;
}): Record<string, string> {
  const isAllowed = (name: string): boolean =>
    ALLOWED.includes(name) || name in CACHES || ALLOWED_TO_SERVERS.test(name);
  return {
    ...caches(ours['CACHE_DIRECTORY']),
    ...only(ours, isAllowed),
    PYTHONUNBUFFERED: '1',
    ...engine,
    ...weights,
    ...model,
    // Last: a server on another GPU than planned would take memory that belongs to somebody else.
    CUDA_DEVICE_ORDER: 'PCI_BUS_ID',
    CUDA_VISIBLE_DEVICES: gpus.join(','),
  };
}

/** The environment of a program that starts or stops somebody else's server. */
export function programEnvironment(
  // eslint-disable-next-line no-restricted-properties -- as above
  ours: Environment = process.env,
): Record<string, string> {
  return only(ours, (name) => ALLOWED.includes(name) || ALLOWED_TO_PROGRAMS.includes(name));
}

/** systemd names several directories with colons between them; ours has one. */
function caches(directory: string | undefined): Record<string, string> {
  const [first = ''] = directory?.split(':') ?? [];
  if (first === '') return {};
  return Object.fromEntries(Object.entries(CACHES).map(([name, below]) => [name, join(first, below)]));
}

function only(ours: Environment, isAllowed: (name: string) => boolean): Record<string, string> {
  return Object.fromEntries(
    Object.entries(ours).filter((entry): entry is [string, string] => entry[1] !== undefined && isAllowed(entry[0])),
  );
}
