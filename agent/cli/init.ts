import { mkdir, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { createInterface } from 'node:readline/promises';
import { execa } from 'execa';
import { errorCode } from '../../shared/errors.ts';
import { EXIT } from '../../shared/exit-codes.ts';
import type { Findings } from '../doctor/first-config.ts';
import { firstConfig } from '../doctor/first-config.ts';
import { findPrograms, findServers, findStep1x, findWeights } from '../doctor/search.ts';

export type InitOptions = {
  config: string;
  /** `local`, `network`, or an address, with or without a port; undefined is asked for, where somebody can be asked. */
  listen: string | undefined;
  isAsking: boolean;
  /** Throws for an address that agent.yaml may not name. */
  check: (listen: string) => unknown;
  path: string;
  nvidiaSmi: string;
  write: (text: string) => void;
  say: (text: string) => void;
  signal: AbortSignal;
};

const DEFAULT_PORT = 7801;
const SMI_MS = 10_000;

/** `gantry-agent init`: a first agent.yaml from what is found on this host. Never replaces one. Returns the exit code. */
export async function initConfig(o: InitOptions): Promise<number> {
  const found: Findings = {
    gpus: await gpusOf(o),
    vllm: findPrograms('vllm', { path: o.path }).sort((a, b) => homeLast(a) - homeLast(b)),
    step1x: findStep1x().sort((a, b) => homeLast(a) - homeLast(b)),
    servers: await findServers(o.signal),
    weights: findWeights(),
  };
  const listen = listenAddress(o.listen ?? (o.isAsking ? await askWhere(o.say) : 'local'));
  await o.check(listen);
  const { text, notes } = firstConfig(found, { listen, isSystem: o.config.endsWith('/etc/gantry/agent.yaml') });
  await mkdir(dirname(o.config), { recursive: true });
  try {
    await writeFile(o.config, text, { flag: 'wx', mode: 0o640 });
  } catch (error) {
    if (errorCode(error) !== 'EEXIST') throw error;
    o.say(`gantry-agent: ${o.config} is there already and stays. To begin anew, move it away first.\n`);
    return EXIT.cannotCreate;
  }
  for (const note of notes) o.write(`${note}\n`);
  o.write(`Written: ${o.config}. It listens on ${listen}.\n`);
  return EXIT.ok;
}

/** `10.0.0.5` is `10.0.0.5:7801`. What is no address, the check of agent.yaml refuses with a sentence. */
export function listenAddress(text: string): string {
  if (text === 'local') return `127.0.0.1:${DEFAULT_PORT}`;
  if (text === 'network') return `0.0.0.0:${DEFAULT_PORT}`;
  if (/^[0-9a-f]*:[0-9a-f:]*:[0-9a-f]*$/i.test(text)) return `[${text}]:${DEFAULT_PORT}`; // IPv6 alone
  return /:\d+$/.test(text) ? text : `${text}:${DEFAULT_PORT}`;
}

async function askWhere(say: (text: string) => void): Promise<string> {
  say('Who may reach the agent? Over a network the link is encrypted, and nobody gets in without an invite.\n');
  say('  1  this machine only\n  2  the network\n');
  const terminal = createInterface({ input: process.stdin, output: process.stderr });
  try {
    return (await terminal.question('[1] ')).trim() === '2' ? 'network' : 'local';
  } finally {
    terminal.close();
  }
}

async function gpusOf({ nvidiaSmi }: InitOptions): Promise<Findings['gpus']> {
  const query = ['--query-gpu=name,memory.total', '--format=csv,noheader,nounits'];
  const { failed, stdout } = await execa(nvidiaSmi, query, { timeout: SMI_MS, killSignal: 'SIGKILL', reject: false });
  if (failed) return [];
  return stdout.split('\n').flatMap((line) => {
    const [, name = '', total = ''] = /^(.*),\s*([^,]*)$/.exec(line.trim()) ?? [];
    return name === '' ? [] : [{ name, totalMiB: /^\d+$/.test(total) ? Number(total) : null }];
  });
}

function homeLast(path: string): number {
  return /^\/(home|root)\//.test(path) ? 1 : 0;
}
