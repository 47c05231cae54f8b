import type { HostClient } from './host-client.ts';
import type { Screen } from './screen.ts';

/** Asks the agent to read agent.yaml again. Returns the problems of the file: with any, nothing was changed. */
export async function reload(client: HostClient, { write }: Pick<Screen, 'write'>): Promise<readonly string[]> {
  const { problems, changes, warnings } = await client.ask('host.reload', {});
  if (problems.length > 0) return problems;
  for (const warning of warnings) write(`warning: ${warning}\n`);
  for (const change of changes) write(`${change}\n`);
  if (changes.length === 0) write('Nothing that a running agent takes over has changed.\n');
  return [];
}
