import type { GpuStatus, HostSnapshot, ModelStatus } from '../../shared/host-snapshot.ts';
import type { HostClient } from './host-client.ts';
import type { Screen } from './screen.ts';
import { clipped, gib, tableLines, timeText, wrapped } from './screen.ts';

/** A reading of this age is as good as new. */
const FRESH_MS = 5_000;
/** Of the log in the words of a failure. */
const LOG_LINES = 3;

/** One screen: what the agent of this host sees and does. VRAM is what nvidia-smi shows. */
export async function printStatus(
  client: HostClient,
  { isJson, ...screen }: Screen & { isJson: boolean },
): Promise<void> {
  const { snapshot } = await client.ask('host.snapshot', {});
  if (isJson) screen.write(`${JSON.stringify({ schema: 1, snapshot }, null, 2)}\n`);
  else screen.write(`${statusLines(snapshot, screen).join('\n')}\n`);
}

export function statusLines(snapshot: HostSnapshot, { columns }: Pick<Screen, 'columns'>): string[] {
  const { hostname, agentVersion, driver, isDraining, isSimulated, problems, gpus, models } = snapshot;
  const facts = [
    `gantry-agent ${agentVersion}`,
    ...(driver === null ? [] : [`driver ${driver}`]),
    ...(isSimulated ? ['simulated'] : []),
    ...(isDraining ? ['draining'] : []),
  ];
  return [
    clipped(`${hostname}: ${facts.join(', ')}`, columns),
    ...problems.flatMap((problem) => wrapped(`! ${problem}`, { columns })),
    '',
    ...gpuLines(gpus, columns),
    '',
    ...modelLines(models, { columns, problems }),
    clipped(
      `host RAM ${gib(snapshot.memory.freeMiB)} of ${gib(snapshot.memory.totalMiB)} GiB free, disk ${gib(snapshot.disk.freeMiB)} GiB free`,
      columns,
    ),
  ];
}

function gpuLines(gpus: readonly GpuStatus[], columns: number | undefined): string[] {
  if (gpus.length === 0) return ['nvidia-smi has shown no GPU.'];
  const rows = [
    ['GPU', 'GiB used', 'of', 'free', 'ours', 'others', 'health', 'name'],
    ...gpus.map((gpu) => [
      String(gpu.index),
      gib(gpu.usedMiB),
      gib(gpu.totalMiB),
      gib(gpu.freeMiB),
      gib(gpu.oursMiB),
      gib(gpu.foreign.reduce((sum, { usedMiB }) => sum + usedMiB, 0)),
      healthText(gpu),
      gpu.name,
    ]),
  ];
  const [head = '', ...lines] = tableLines(rows);
  return [
    clipped(head, columns),
    ...gpus.flatMap((gpu, at) => [
      clipped(lines[at] ?? '', columns),
      ...wrapped(gpu.unlisted ?? '', { columns, indent: '     ' }),
      ...gpu.foreign.map(({ pid, name, usedMiB }) =>
        clipped(`     ${name} (pid ${pid}) ${Math.round(usedMiB)} MiB`, columns),
      ),
    ]),
  ];
}

function healthText({ health, isDegraded, ageMs }: GpuStatus): string {
  const state = isDegraded ? (health === 'ok' ? 'degraded' : `${health}, degraded`) : health;
  return ageMs > FRESH_MS ? `${state}, ${timeText(ageMs)} old` : state;
}

function modelLines(
  models: readonly ModelStatus[],
  { columns, problems }: Pick<Screen, 'columns'> & { problems: readonly string[] },
): string[] {
  if (models.length === 0) return ['No model is configured.'];
  const rows = [
    ['model', 'state', 'GiB', 'jobs', 'idle', 'load', 'wake', 'repository'],
    ...models.map((model) => [
      model.alias,
      stateText(model),
      gib(model.heldMiB),
      String(model.jobsDone),
      model.state === 'ready' || model.state === 'offloaded' ? timeText(model.idleMs) : '',
      `${model.isMeasured ? '' : '~'}${timeText(model.loadMs)}`,
      `${(model.wakes ?? 0) > 0 ? '' : '~'}${timeText(model.wakeMs)}`,
      model.model,
    ]),
  ];
  const [head = '', ...lines] = tableLines(rows);
  return [
    clipped(head, columns),
    ...models.flatMap((model, at) => [
      clipped(lines[at] ?? '', columns),
      ...detailLines(model, columns),
      ...reasons(model, problems).flatMap((text) => wrapped(text, { columns, indent: '  ' })),
    ]),
  ];
}

/** What a failed server wrote last is kept short: one screen has more to tell than one log. */
function detailLines({ alias, detail = '' }: ModelStatus, columns: number | undefined): string[] {
  const [said = '', ...written] = detail.trim().split('\n');
  return [
    ...wrapped(said, { columns, indent: '  ' }),
    ...written
      .slice(-LOG_LINES)
      .flatMap((line) => tableLines([[line]], { indent: '    ' }).map((one) => clipped(one, columns))),
    ...(written.length > LOG_LINES ? [clipped(`    all of it: gantry-agent logs ${alias}`, columns)] : []),
  ];
}

function stateText({ state, slots, gpus, isPinned }: ModelStatus): string {
  const running = slots.filter(({ phase }) => phase === 'running').length;
  const parts = [state, ...(running > 0 ? [`${running} running`] : []), ...(isPinned ? ['pinned'] : [])];
  return gpus.length > 1 ? `${parts.join(', ')}, ${gpus.length} GPUs` : parts.join(', ');
}

/** Why its slots give no grants, each reason once; what the whole host says is in its problems already. */
function reasons({ slots, detail }: ModelStatus, problems: readonly string[]): string[] {
  const given = new Set(slots.flatMap(({ reason }) => reason ?? []));
  return [...given].filter(
    (reason) => !problems.includes(reason) && (detail === undefined || !reason.startsWith(detail)),
  );
}
