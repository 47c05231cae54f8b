import { randomUUID } from 'node:crypto';
import { hostname } from 'node:os';
import type { Log } from '../shared/log.ts';
import { createLog } from '../shared/log.ts';
import type { BridgeConfig } from './config.ts';
import { Fleet } from './fleet/fleet.ts';
import type { HostConfig } from './fleet/host-view.ts';
import { ImageIndex } from './images/image-index.ts';
import { resultsFile } from './mcp/answers.ts';
import { invitedHosts } from './pairing/invited-hosts.ts';
import { privateHosts } from './private-agent/private-hosts.ts';

export type FleetParts = { fleet: Fleet; log: Log };

/** The fleet of this process and the log it writes. Nothing is open yet. */
export function createFleet(config: BridgeConfig, { clientName }: { clientName: () => string }): FleetParts {
  const log = createLog({ name: 'gantry', to: 'stderr', level: config.logLevel });
  const { stateDir, times, maxConcurrent, hasSideCars } = config;
  const bridgeId = randomUUID();
  const hosts = [...config.hosts, ...withoutAgents(config, log), ...invited(config, { clientName, log })];
  const index = new ImageIndex(stateDir);
  const onRemoving = (batchId: string): Promise<void> => index.keep(batchId);
  const options = {
    hosts,
    bridgeId,
    clientName,
    stateDir,
    times,
    maxConcurrent,
    hasSideCars,
    log,
    onEnding: resultsFile,
    onRemoving,
  };
  return { fleet: new Fleet(options), log };
}

/** Hosts of plain vLLM-Omni servers, each with a private agent of ours. */
function withoutAgents({ vllm, hosts, stateDir }: BridgeConfig, log: Log): HostConfig[] {
  const taken = hosts.map(({ name }) => name);
  return vllm.servers.length === 0 ? [] : privateHosts({ ...vllm, taken, stateDir, log });
}

/** Hosts of GANTRY_HOSTS, paired when their first link opens. */
function invited(
  { invites, hosts, stateDir }: BridgeConfig,
  { clientName, log }: { clientName: () => string; log: Log },
): HostConfig[] {
  const taken = hosts.map(({ name }) => name);
  // A token is named after the laptop that has it, and after what runs there.
  const label = (): string => `${hostname()} ${clientName()}`.slice(0, 80);
  return invites.length === 0 ? [] : invitedHosts(invites, { stateDir, taken, clientName: label, log });
}
