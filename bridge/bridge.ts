import { randomUUID } from 'node:crypto';
import { packageVersion } from './version.ts';
import type { Log } from '../shared/log.ts';
import type { BridgeConfig } from './config.ts';
import type { Fleet } from './fleet/fleet.ts';
import { resultsFile } from './mcp/answers.ts';
import type { Server } from './mcp/sdk.ts';
import { createServer } from './mcp/server.ts';
import { TOOLS } from './mcp/tools.ts';

/**
 * Composition root of the bridge. Nothing is opened before the first call: clients start a server more than once to look
 * at it. So the fleet, with the packages it needs, is loaded when somebody asks for it.
 */
export class Bridge implements AsyncDisposable {
  readonly server: Server;
  readonly #config: BridgeConfig;
  #parts: Promise<{ fleet: Fleet; log: Log }> | undefined;
  #isDetached = false;

  constructor(config: BridgeConfig) {
    this.#config = config;
    this.server = createServer({
      version: packageVersion,
      tools: TOOLS,
      settings: config,
      roots: { home: config.home, cwd: config.cwd, configured: config.roots, outputDir: config.outputDir },
      openFleet: () => this.openFleet(),
      onDefect: (tool, error) => void this.#logDefect(tool, error), // its own failure has nowhere left to be told
    });
  }

  /** The fleet with its links opening and its unfinished batches resumed; the same one for every caller. */
  async openFleet(): Promise<Fleet> {
    const fleet = await this.connectFleet();
    fleet.open();
    return fleet;
  }

  /** The fleet with its links opening, for somebody who only looks. */
  async connectFleet(): Promise<Fleet> {
    if (this.#isDetached) throw new Error('the bridge is ending');
    this.#parts ??= openParts(this.#config, () => this.server.getClientVersion()?.name ?? 'gantry');
    const { fleet } = await this.#parts;
    fleet.connect();
    return fleet;
  }

  /** Withdraws what is offered and closes the links; accepted jobs run on and are fetched by the next bridge. */
  async detach(): Promise<void> {
    this.#isDetached = true;
    if (this.#parts === undefined) return;
    const { fleet } = await this.#parts;
    await fleet.detach();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.detach();
    const parts = await this.#parts;
    await parts?.fleet[Symbol.asyncDispose]();
  }

  async #logDefect(tool: string, error: unknown): Promise<void> {
    const { createLog } = await import('../shared/log.ts');
    const log = (await this.#parts)?.log ?? createLog({ name: 'gantry', to: 'stderr', level: this.#config.logLevel });
    log.error({ event: 'tool-defect', tool, err: error });
  }
}

async function openParts(config: BridgeConfig, clientName: () => string): Promise<{ fleet: Fleet; log: Log }> {
  const [{ Fleet }, { createLog }] = await Promise.all([import('./fleet/fleet.ts'), import('../shared/log.ts')]);
  const log = createLog({ name: 'gantry', to: 'stderr', level: config.logLevel });
  const fleet = new Fleet({
    hosts: config.hosts,
    bridgeId: randomUUID(),
    clientName,
    stateDir: config.stateDir,
    times: config.times,
    log,
    onEnding: resultsFile,
  });
  return { fleet, log };
}
