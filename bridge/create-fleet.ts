import { randomUUID } from 'node:crypto';
import type { Log } from '../shared/log.ts';
import { createLog } from '../shared/log.ts';
import type { BridgeConfig } from './config.ts';
import { Fleet } from './fleet/fleet.ts';
import { ImageIndex } from './images/image-index.ts';
import { resultsFile } from './mcp/answers.ts';

export type FleetParts = { fleet: Fleet; log: Log };

/** The fleet of this process and the log it writes. Nothing is open yet. */
export function createFleet(config: BridgeConfig, { clientName }: { clientName: () => string }): FleetParts {
  const log = createLog({ name: 'gantry', to: 'stderr', level: config.logLevel });
  const { hosts, stateDir, times } = config;
  const bridgeId = randomUUID();
  const index = new ImageIndex(stateDir);
  const onRemoving = (batchId: string): Promise<void> => index.keep(batchId);
  return {
    fleet: new Fleet({ hosts, bridgeId, clientName, stateDir, times, log, onEnding: resultsFile, onRemoving }),
    log,
  };
}
