import { isIP } from 'node:net';

/** A server as it was named, in the one form that everybody who means the same writes. */
export type VllmServer = { url: string; isHere: boolean };

const LONGEST_NAME = 50;

/**
 * The base URL in one form: lower case, no default port, no `/` or `/v1` behind it. A text says what is wrong with another.
 * `own` are the names and addresses of this machine.
 */
export function parseVllmUrl(text: string, own: readonly string[]): VllmServer | string {
  const shown = JSON.stringify(text);
  if (!URL.canParse(text.trim()) || !/^https?:\/\//i.test(text.trim())) {
    return `${shown} is no URL of a server: write it like http://gpu-box:8000`;
  }
  const { protocol, host, hostname, pathname, username, password, search, hash } = new URL(text.trim());
  if (username !== '' || password !== '') {
    return 'A URL with a name or password in it is not used: gantry sends no keys. Write it without';
  }
  if (search !== '' || hash !== '') return `${shown} has something behind the path: write it like http://gpu-box:8000`;
  const path = pathname.replace(/\/+$/, '').replace(/\/v1$/, '');
  return { url: `${protocol}//${host}${path}`, isHere: isHere(hostname, own) };
}

/** What the fleet calls it: its host and port, with a number behind it where that name is taken. */
export function hostNameOf(url: string, taken: ReadonlySet<string>): string {
  const { hostname, port, protocol } = new URL(url);
  const words = `${hostname}-${port || (protocol === 'https:' ? '443' : '80')}`.replace(/[^A-Za-z0-9.-]+/g, '-');
  const name = `vllm-${words.replace(/^[-.]+/, '')}`.slice(0, LONGEST_NAME);
  for (let n = 1; ; n += 1) {
    const candidate = n === 1 ? name : `${name}-${n}`;
    if (!taken.has(candidate)) return candidate;
  }
}

/** Only then are the GPUs of this machine those that the server uses. */
function isHere(hostname: string, own: readonly string[]): boolean {
  const bare = hostname.replace(/^\[(.*)\]$/, '$1').toLowerCase();
  if (bare === 'localhost' || bare.endsWith('.localhost') || bare === '::1') return true;
  if (isIP(bare) === 4 && bare.startsWith('127.')) return true;
  return own.some((each) => each.toLowerCase() === bare);
}
