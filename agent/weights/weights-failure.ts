import { AppError } from '../../shared/errors.ts';
import { sizeText, durationText } from './weights-text.ts';

/** What kept weights from coming, as far as it decides what is done about it. */
export type DownloadProblem = 'denied' | 'not-found' | 'disk-full' | 'network' | 'stalled' | 'no-program' | 'failed';

export type DownloadFailure = {
  problem: DownloadProblem;
  error: AppError;
  /** Trying again without a person's doing would fail in the same way. */
  isFatal: boolean;
};

type Wanted = { alias: string; repository: string; revision: string | undefined; hub: 'hugging-face' | 'modelscope' };

const DISK_FULL = /no space left on device|os error 28|errno 28|disk quota exceeded|errno 122/i;
const GATED = /gatedrepoerror|gated repo for url|requires approval|is restricted|ask for access/i;
const DENIED =
  /access denied|invalid (user )?token|401 (client error|unauthorized)|client error '40[13] |403 (client error|forbidden)|invalid credentials|e3001|e3002/i;
const NOT_FOUND =
  /repositorynotfounderror|repository not found|(model|repository) '[^']*' not found|404 client error|client error '404 |e3020|does not exist/i;
const BAD_REVISION = /revisionnotfounderror|revision not found|invalid rev id/i;
const NETWORK =
  /connection (refused|reset|aborted|error)|connecterror|connection ?error|name resolution|name or service not known|network is unreachable|timed? ?out|local ?entry ?not ?found|offline mode|server error '5\d\d |50\d (server error|bad gateway)|networkerror|temporary failure|max retries exceeded|e1001|e1002|e1020/i;

/** PURE. What the last lines of a downloader that ended with an error mean. */
export function readFailure(text: string, o: Wanted & { how: string; logPath: string }): DownloadFailure {
  const { alias, repository, hub } = o;
  const what = named(o);
  const site = hub === 'modelscope' ? 'https://modelscope.cn/models' : 'https://huggingface.co';
  const token = hub === 'modelscope' ? 'MODELSCOPE_API_TOKEN' : 'HF_TOKEN';
  if (DISK_FULL.test(text)) {
    return failed(
      'disk-full',
      'DISK_FULL',
      `The disk filled up while the weights of ${what} were downloaded. ${KEPT} Make room, then load_model ${alias}.`,
    );
  }
  if (BAD_REVISION.test(text)) {
    return fatal(
      'not-found',
      `${what} does not exist: the repository has no such revision. Correct \`revision\` of ${alias} in agent.yaml with a commit of ${site}/${repository}.`,
    );
  }
  // Before "not found": that one's text speaks of gated repositories too.
  if (GATED.test(text)) {
    return fatal(
      'denied',
      `${what} is gated. Accept its licence at ${site}/${repository} and set ${token} of that account in \`env\` of ${alias} in agent.yaml, then \`gantry-agent reload\` and load_model ${alias}.`,
    );
  }
  if (NOT_FOUND.test(text)) {
    return fatal(
      'not-found',
      `${what} was not found, or is private. Correct \`model\` of ${alias} in agent.yaml, or set ${token} in its \`env\` for an account that may read it.`,
    );
  }
  if (DENIED.test(text)) {
    return fatal(
      'denied',
      `The download of ${what} was denied. Accept its licence at ${site}/${repository}, if it has one, and set a valid ${token} in \`env\` of ${alias} in agent.yaml, then \`gantry-agent reload\` and load_model ${alias}.`,
    );
  }
  if (NETWORK.test(text)) {
    return failed(
      'network',
      'MODEL_FAILED',
      `The weights of ${what} could not be downloaded: the hub cannot be reached. ${KEPT} Check the network, and HTTPS_PROXY or HF_ENDPOINT where you need them.`,
    );
  }
  return failed(
    'failed',
    'MODEL_FAILED',
    `The downloader of ${what} ${o.how}. ${KEPT} See its log: ${o.logPath}${text === '' ? '' : `\n${text}`}`,
  );
}

export function stalledFailure(o: Wanted & { stallMs: number; logPath: string }): DownloadFailure {
  return failed(
    'stalled',
    'TIMEOUT',
    `The download of ${named(o)} stood still for ${durationText(o.stallMs)}. ${KEPT} See its log: ${o.logPath}`,
  );
}

/** `needMiB` is null where the size of the download is not known. */
export function noRoomFailure(
  o: Wanted & { needMiB: number | null; isEstimate: boolean; freeMiB: number; reserveMiB: number; directory: string },
): DownloadFailure {
  const need = o.needMiB === null ? 'an unknown amount' : `${o.isEstimate ? 'about ' : ''}${sizeText(o.needMiB)}`;
  return failed(
    'disk-full',
    'DISK_FULL',
    `The weights of ${named(o)} need ${need} more, and ${o.directory} has ${sizeText(o.freeMiB)} free, of which ${sizeText(o.reserveMiB)} stay free. ` +
      `${KEPT} Make room there, or name a larger disk as HF_HOME in \`env\` of ${o.alias} in agent.yaml and \`gantry-agent reload\`; then load_model ${o.alias}.`,
  );
}

/** A failure of our own machinery: a program that cannot be started, a log that cannot be written. */
export function brokenFailure(o: Wanted & { reason: string }): DownloadFailure {
  return failed(
    'failed',
    'MODEL_FAILED',
    `The download of ${named(o)} was not started: ${o.reason}. Check \`download\` of ${o.alias} in agent.yaml.`,
  );
}

const KEPT = 'What has arrived is kept.';

function named({ repository, revision }: Wanted): string {
  return revision === undefined ? repository : `${repository} at ${revision}`;
}

function fatal(problem: DownloadProblem, message: string): DownloadFailure {
  return { problem, error: new AppError('MODEL_FAILED', message), isFatal: true };
}

function failed(
  problem: DownloadProblem,
  code: 'MODEL_FAILED' | 'DISK_FULL' | 'TIMEOUT',
  message: string,
): DownloadFailure {
  return { problem, error: new AppError(code, message), isFatal: false };
}
