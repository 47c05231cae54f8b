import { once } from 'node:events';
import type { Log } from '../shared/log.ts';
import { createLog } from '../shared/log.ts';
import { Agent } from './agent.ts';
import type { AgentConfig, AgentFlags } from './config.ts';
import { loadAgentConfig } from './config.ts';
import { EXIT } from '../shared/exit-codes.ts';
import { OwnerWatch } from './owner-watch.ts';
import { PrivateDoor } from './private-door.ts';
import { AGENT_VERSION } from './status.ts';

/**
 * The daemon, in the foreground: until SIGTERM, SIGINT or the end of its terminal. SIGHUP reads agent.yaml again where there
 * is no terminal. With `--linger` also when nobody needs it any more. A defect ends the process at once: the next start
 * clears up behind it.
 */
export async function run(flags: AgentFlags): Promise<void> {
  const settings = await loadAgentConfig(flags);
  const log = createLog({ name: 'gantry-agent', to: 'stdout', level: settings.logLevel });
  const stop = new AbortController();
  const hangUps = { isWaiting: false, reload: (): void => void (hangUps.isWaiting = true) };
  for (const name of ['SIGTERM', 'SIGINT'] as const) process.on(name, () => stop.abort());
  process.on('SIGHUP', () => (hasTerminal() ? stop.abort() : hangUps.reload()));
  const onDefect = (error: unknown): never => endAtDefect(error, log);
  process.on('uncaughtException', onDefect);
  process.on('unhandledRejection', onDefect);
  for (const warning of settings.warnings) log.warn({ event: 'config-warning', message: warning });
  const readConfig = (): Promise<AgentConfig> => loadAgentConfig(flags);
  using owners = flags.linger === undefined ? undefined : watchOwners(flags.linger, { log, stop });
  const onLinks = (count: number): void => owners?.links(count);
  const agent = await startUnlessStopped(settings, { log, signal: stop.signal, readConfig, onLinks });
  if (agent === undefined) return;
  const { stateDir } = settings;
  const { address, reach } = agent;
  const door = owners && (await PrivateDoor.open({ stateDir, address }));
  log.info({ event: 'listening', ...address, reach, models: settings.models.length, agentVersion: AGENT_VERSION });
  hangUps.reload = () => {
    const failed = (error: unknown): void => log.error({ event: 'config-not-reloaded', err: error });
    void agent.reload().catch(failed); // nobody waits for it, and its failure is logged
  };
  if (hangUps.isWaiting) hangUps.reload(); // what was read at the start may be older than the signal
  if (!stop.signal.aborted) await once(stop.signal, 'abort');
  log.info({ event: 'stopping' });
  await door?.[Symbol.asyncDispose]();
  await agent[Symbol.asyncDispose]();
  log.info({ event: 'stopped' });
}

function watchOwners(lingerMs: number, { log, stop }: { log: Log; stop: AbortController }): OwnerWatch {
  const owners = new OwnerWatch({ input: process.stdin, lingerMs });
  void owners.over.then(() => {
    log.info({ event: 'nobody-left', lingerMs });
    stop.abort();
  });
  return owners;
}

/** There SIGHUP means that the terminal has gone, and with it whoever started us. */
function hasTerminal(): boolean {
  return process.stdin.isTTY || process.stdout.isTTY;
}

async function startUnlessStopped(
  settings: AgentConfig,
  options: Parameters<typeof Agent.start>[1],
): Promise<Agent | undefined> {
  try {
    return await Agent.start(settings, options);
  } catch (error) {
    if (options.signal.aborted) return undefined;
    throw error;
  }
}

function endAtDefect(error: unknown, log: Log): never {
  log.fatal({ event: 'defect', err: error });
  process.exit(EXIT.failed);
}
