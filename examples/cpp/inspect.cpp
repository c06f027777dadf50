// Inspects one image with an artifact of `oddpatch export`: inspect model.onnx part.ppm
//
// It prints the score that oddpatch prints, to float rounding. The host resizes and crops, which the metadata describes;
// the graph normalises, scores and decides. A binary PPM (P6) of 8 bits stands for whatever your camera gives. For runs
// with data.align, with data.roi, padded by letterbox or resized bicubically, the host has more to do: it ends here.
//
// g++ -std=c++17 -O2 inspect.cpp -I ONNXRUNTIME/include -L ONNXRUNTIME/lib -lonnxruntime -o inspect
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Image { int height, width; std::vector<float> values; };  // (H, W, 3)

Image read_ppm(const char* path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic; int width = 0, height = 0, highest = 0;
  if (!(file >> magic >> width >> height >> highest) || magic != "P6" || highest != 255 || width < 1 || height < 1)
    throw std::runtime_error(std::string(path) + " is no binary PPM of 8 bits");
  file.get();
  std::vector<unsigned char> bytes(size_t(3) * width * height);
  if (!file.read(reinterpret_cast<char*>(bytes.data()), bytes.size())) throw std::runtime_error("truncated");
  Image image{height, width, std::vector<float>(bytes.size())};
  for (size_t i = 0; i < bytes.size(); ++i) image.values[i] = bytes[i] / 255.0f;
  return image;
}

// Resizes the rows, as an antialiased triangle filter does, and turns the image: (W, size, 3), to be called twice.
Image resize_rows(const Image& image, int size) {
  Image out{image.width, size, std::vector<float>(size_t(3) * image.width * size)};
  const double step = double(image.height) / size, radius = std::max(step, 1.0);
  for (int y = 0; y < size; ++y) {
    const double centre = step * (y + 0.5);
    const int first = std::max(int(centre - radius + 0.5), 0), last = std::min(int(centre + radius + 0.5), image.height);
    std::vector<double> weights;
    double total = 0;
    for (int row = first; row < last; ++row) {
      weights.push_back(std::max(1 - std::abs(row + 0.5 - centre) / radius, 0.0));
      total += weights.back();
    }
    for (int x = 0; x < image.width; ++x)
      for (int c = 0; c < 3; ++c) {
        double sum = 0;
        for (int row = first; row < last; ++row)
          sum += weights[row - first] / total * image.values[(size_t(row) * image.width + x) * 3 + c];
        out.values[(size_t(x) * size + y) * 3 + c] = float(sum);
      }
  }
  return out;
}

// The text after `"name": ` in the metadata, which is JSON as Python writes it.
std::string setting(const std::string& json, const std::string& name) {
  const size_t place = json.find("\"" + name + "\": ");
  if (place == std::string::npos) throw std::runtime_error("the metadata lacks " + name);
  return json.substr(place + name.size() + 4);
}

int main(int count, char** arguments) try {
  if (count != 3) throw std::runtime_error("usage: inspect model.onnx part.ppm");
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "inspect");
  Ort::Session session(env, arguments[1], Ort::SessionOptions{});
  Ort::AllocatorWithDefaultOptions allocator;
  const auto metadata = session.GetModelMetadata().LookupCustomMetadataMapAllocated("oddpatch", allocator);
  if (!metadata) throw std::runtime_error("this is no artifact of oddpatch");
  const std::string json = setting(metadata.get(), "preprocess"), resize = setting(json, "resize");
  const bool crops = setting(json, "fit").rfind("\"crop\"", 0) == 0;
  if (!crops && setting(json, "fit").rfind("\"stretch\"", 0) != 0) throw std::runtime_error("fit is not done here");
  if (setting(json, "interpolation").rfind("\"bilinear\"", 0) != 0) throw std::runtime_error("bicubic is not done here");
  for (const char* name : {"align", "roi"})
    if (setting(json, name).rfind("null", 0) != 0) throw std::runtime_error(std::string(name) + " is not done here");

  const auto shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();  // (-1, 3, h, w)
  const int height = int(shape[2]), width = int(shape[3]);
  Image image = read_ppm(arguments[2]);
  int rows = crops ? image.height : height, columns = crops ? image.width : width;
  if (crops && resize[0] == '[') {
    std::sscanf(resize.c_str(), "[%d, %d]", &rows, &columns);
  } else if (crops && resize[0] != 'n') {  // the shorter side
    const int side = std::stoi(resize), shorter = std::min(image.height, image.width);
    rows = image.height == shorter ? side : int(double(side) * image.height / shorter);
    columns = image.width == shorter ? side : int(double(side) * image.width / shorter);
  }
  image = resize_rows(resize_rows(image, rows), columns);  // (rows, columns, 3)
  const int top = int(std::nearbyint((rows - height) / 2.0)), left = int(std::nearbyint((columns - width) / 2.0));
  if (top < 0 || left < 0) throw std::runtime_error("the image is smaller than the crop");
  std::vector<float> pixels(size_t(3) * height * width);
  for (int c = 0; c < 3; ++c)
    for (int y = 0; y < height; ++y)
      for (int x = 0; x < width; ++x)
        pixels[(size_t(c) * height + y) * width + x] =
            image.values[(size_t(top + y) * image.width + left + x) * 3 + c];

  const std::vector<int64_t> one{1, 3, height, width};
  const auto input = Ort::Value::CreateTensor<float>(
      Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault), pixels.data(), pixels.size(), one.data(), 4);
  const char* inputs[] = {"image"};
  const char* outputs[] = {"score", "is_anomalous"};  // the latter is missing where the run has no threshold
  const size_t wanted = setting(metadata.get(), "thresholds").rfind("{\"image\": null", 0) == 0 ? 1 : 2;
  auto found = session.Run(Ort::RunOptions{}, inputs, &input, 1, outputs, wanted);
  std::printf("score %.9g\n", found[0].GetTensorData<float>()[0]);
  if (wanted == 2) std::printf("anomalous %d\n", int(found[1].GetTensorData<bool>()[0]));
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 2;
}
