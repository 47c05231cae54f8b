import { basename } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { JobView } from '../fleet/batch-view.ts';
import { mimeOf } from '../images/renderer.ts';
import { isMade } from './answers.ts';
import type { ResourceLink } from './sdk.ts';
import { cleanText } from './text.ts';

/** The saved files as addresses, for clients that show them; only on request, because some drop the whole answer for them. */
export function resultLinks(jobs: readonly JobView[]): ResourceLink[] {
  return jobs.filter(isMade).map(({ filePath, result: { format, bytes } }) => ({
    type: 'resource_link',
    uri: pathToFileURL(filePath).href,
    name: cleanText(basename(filePath), 200),
    mimeType: mimeOf(format),
    size: bytes,
  }));
}
