import { createHash } from 'node:crypto';
import { realpathSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { Log } from '../../shared/log.ts';
import type { HostConfig } from '../fleet/host-view.ts';
import { PrivateAgent } from './private-agent.ts';
import type { VllmServer } from './vllm-url.ts';
import { hostNameOf } from './vllm-url.ts';

export type PrivateHostsOptions = {
  servers: readonly VllmServer[];
  /** Names that the configuration gives to other hosts. */
  taken: readonly string[];
  stateDir: string;
  timeoutMs: number;
  lingerMs: number;
  env: NodeJS.ProcessEnv;
  log: Log;
};

/** The host of each plain vLLM-Omni server. Nothing is started, and no file is written, before its link is opened. */
export function privateHosts({ servers, taken, stateDir, env, ...options }: PrivateHostsOptions): HostConfig[] {
  const names = new Set(taken);
  return servers.map(({ url, isHere }) => {
    const name = hostNameOf(url, names);
    names.add(name);
    const agent = new PrivateAgent({
      settings: { url, isHere, timeoutMs: options.timeoutMs },
      directory: join(stateDir, 'vllm', keyOf(url)),
      program: { path: besideThisProgram('gantry-agent.mjs'), env },
      lingerMs: options.lingerMs,
      log: options.log,
    });
    return { name, url, token: '', reach: (signal) => agent.reach(signal) };
  });
}

/** Short: a socket of the agent lies in the directory of this name, and its path may not be long. */
function keyOf(url: string): string {
  return createHash('sha256').update(url).digest('hex').slice(0, 16);
}

function besideThisProgram(name: string): string {
  const [, program = ''] = process.argv;
  try {
    return join(dirname(realpathSync(program)), name); // npm puts a link in its place
  } catch {
    return join(dirname(program), name);
  }
}
