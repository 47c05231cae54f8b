import type { ImageEntry } from '../images/image-entry.ts';
import type { Images } from '../images/images.ts';
import { isFile } from '../images/located.ts';
import { listedJson } from './picture-view.ts';

type Query = { limit?: number | undefined; query?: string | undefined; model?: string | undefined };

const USUAL_LIMIT = 20;

/** The newest images that match, as `list_images` and `image://list` show them. Whether a file was only moved is not looked for. */
export async function recentJson(images: Images, { limit = USUAL_LIMIT, query, model }: Query) {
  const { entries, hasMore, damagedLines } = await images.recent({ limit, matches: matcher({ query, model }) });
  return {
    images: await Promise.all(
      entries.map(async (entry) => listedJson(entry, { isMissing: !(await isFile(entry.path)) })),
    ),
    has_more: hasMore,
    notes: damagedLines === 0 ? [] : [`${damagedLines} lines of the image index could not be read and are left out.`],
  };
}

/** Every word somewhere in the prompt, in any order and case; a part of the model's id is enough. */
function matcher({ query = '', model = '' }: Query): (entry: ImageEntry) => boolean {
  const words = folded(query).split(/\s+/).filter(Boolean);
  const part = folded(model);
  return ({ request }) => {
    const prompt = folded(request.prompt);
    return words.every((word) => prompt.includes(word)) && folded(request.model).includes(part);
  };
}

function folded(text: string): string {
  return text.normalize('NFKC').toLowerCase();
}
