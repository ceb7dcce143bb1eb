/* FAISS's C API over its C++ library, for installations that ship the headers of the former and the code of the latter alone
 * (Debian's libfaiss-dev). Defined are the functions that the library and its tests call; the official headers are included, so a
 * signature that differs from theirs does not compile. CMake takes a real libfaiss_c instead where there is one. */
#include <faiss/AutoTune.h>
#include <faiss/Clustering.h>
#include <faiss/IndexAdditiveQuantizer.h>
#include <faiss/IndexFlat.h>
#include <faiss/IndexIVF.h>
#include <faiss/IndexIVFAdditiveQuantizer.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexIVFPQFastScan.h>
#include <faiss/IndexPQ.h>
#include <faiss/IndexPQFastScan.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/impl/io.h>
#include <faiss/index_factory.h>
#include <faiss/index_io.h>

#include <faiss/c_api/AutoTune_c.h>
#include <faiss/c_api/Clustering_c.h>
#include <faiss/c_api/IndexFlat_c.h>
#include <faiss/c_api/Index_c.h>
#include <faiss/c_api/error_c.h>
#include <faiss/c_api/index_factory_c.h>
#include <faiss/c_api/index_io_c.h>

#include <exception>
#include <memory>
#include <string>

namespace
{

thread_local std::string last_error;

int fail(int code, const char *what)
{
    try {
        last_error = what;
    } catch (...) {
        last_error.clear();
    }
    return code;
}

/* Runs f; exceptions become the codes of error_c.h. */
template <class F> int guarded(F f)
{
    try {
        f();
        return 0;
    } catch (const faiss::FaissException &e) {
        return fail(FAISS_EXCEPT, e.what());
    } catch (const std::exception &e) {
        return fail(STD_EXCEPT, e.what());
    } catch (...) {
        return fail(UNKNOWN_EXCEPT, "unknown exception");
    }
}

faiss::Index *cast(FaissIndex *index)
{
    return reinterpret_cast<faiss::Index *>(index);
}

const faiss::Index *cast(const FaissIndex *index)
{
    return reinterpret_cast<const faiss::Index *>(index);
}

/* k-means inside of FAISS writes a warning to the standard error stream when it has fewer points per centroid than it likes. A
 * library has no business there: how few points there may be is for the caller to decide. */
constexpr int any_number = 1;

void silence(faiss::AdditiveQuantizer *quantizer)
{
    if (auto *residual = dynamic_cast<faiss::ResidualQuantizer *>(quantizer))
        residual->cp.min_points_per_centroid = any_number;
    if (auto *product = dynamic_cast<faiss::ProductAdditiveQuantizer *>(quantizer))
        for (auto *part : product->quantizers)
            silence(part);
}

void silence(faiss::Index *index)
{
    if (auto *pre = dynamic_cast<faiss::IndexPreTransform *>(index))
        silence(pre->index);
    if (auto *refine = dynamic_cast<faiss::IndexRefine *>(index))
        silence(refine->base_index);
    if (auto *ivf = dynamic_cast<faiss::IndexIVF *>(index)) {
        ivf->cp.min_points_per_centroid = any_number;
        silence(ivf->quantizer);
    }
    if (auto *multi = dynamic_cast<faiss::MultiIndexQuantizer *>(index))
        multi->pq.cp.min_points_per_centroid = any_number;
    if (auto *ivf_pq = dynamic_cast<faiss::IndexIVFPQ *>(index))
        ivf_pq->pq.cp.min_points_per_centroid = any_number;
    if (auto *ivf_scan = dynamic_cast<faiss::IndexIVFPQFastScan *>(index))
        ivf_scan->pq.cp.min_points_per_centroid = any_number;
    if (auto *pq = dynamic_cast<faiss::IndexPQ *>(index))
        pq->pq.cp.min_points_per_centroid = any_number;
    if (auto *scan = dynamic_cast<faiss::IndexPQFastScan *>(index))
        scan->pq.cp.min_points_per_centroid = any_number;
    if (auto *additive = dynamic_cast<faiss::IndexAdditiveQuantizer *>(index))
        silence(additive->aq);
    if (auto *additive = dynamic_cast<faiss::IndexIVFAdditiveQuantizer *>(index))
        silence(additive->aq);
}

} // namespace

extern "C" {

const char *faiss_get_last_error()
{
    return last_error.empty() ? nullptr : last_error.c_str();
}

/* -- indexes -- */

int faiss_index_factory(FaissIndex **p_index, int d, const char *description,
                        FaissMetricType metric)
{
    return guarded([&] {
        std::unique_ptr<faiss::Index> index(
            faiss::index_factory(d, description, static_cast<faiss::MetricType>(metric)));
        silence(index.get());
        *p_index = reinterpret_cast<FaissIndex *>(index.release());
    });
}

void faiss_Index_free(FaissIndex *index)
{
    delete cast(index);
}

int faiss_Index_d(const FaissIndex *index)
{
    return static_cast<int>(cast(index)->d);
}

int faiss_Index_is_trained(const FaissIndex *index)
{
    return cast(index)->is_trained;
}

idx_t faiss_Index_ntotal(const FaissIndex *index)
{
    return cast(index)->ntotal;
}

FaissMetricType faiss_Index_metric_type(const FaissIndex *index)
{
    return static_cast<FaissMetricType>(cast(index)->metric_type);
}

int faiss_Index_train(FaissIndex *index, idx_t n, const float *x)
{
    return guarded([&] { cast(index)->train(n, x); });
}

int faiss_Index_add(FaissIndex *index, idx_t n, const float *x)
{
    return guarded([&] { cast(index)->add(n, x); });
}

int faiss_Index_search(const FaissIndex *index, idx_t n, const float *x, idx_t k, float *distances,
                       idx_t *labels)
{
    return guarded([&] { cast(index)->search(n, x, k, distances, labels); });
}

int faiss_Index_assign(FaissIndex *index, idx_t n, const float *x, idx_t *labels, idx_t k)
{
    return guarded([&] { cast(index)->assign(n, x, labels, k); });
}

int faiss_Index_reset(FaissIndex *index)
{
    return guarded([&] { cast(index)->reset(); });
}

int faiss_write_index(const FaissIndex *index, FILE *file)
{
    return guarded([&] { faiss::write_index(cast(index), file); });
}

int faiss_IndexFlatL2_new_with(FaissIndexFlatL2 **p_index, idx_t d)
{
    return guarded(
        [&] { *p_index = reinterpret_cast<FaissIndexFlatL2 *>(new faiss::IndexFlatL2(d)); });
}

/* -- parameters of a search -- */

int faiss_ParameterSpace_new(FaissParameterSpace **space)
{
    return guarded(
        [&] { *space = reinterpret_cast<FaissParameterSpace *>(new faiss::ParameterSpace()); });
}

void faiss_ParameterSpace_free(FaissParameterSpace *space)
{
    delete reinterpret_cast<faiss::ParameterSpace *>(space);
}

int faiss_ParameterSpace_set_index_parameter(const FaissParameterSpace *space, FaissIndex *index,
                                             const char *name, double value)
{
    return guarded([&] {
        faiss::ParameterSpace quiet(*reinterpret_cast<const faiss::ParameterSpace *>(space));
        quiet.verbose = 0;
        quiet.set_index_parameter(cast(index), name, value);
    });
}

/* -- k-means -- */

int faiss_Clustering_new(FaissClustering **p_clustering, int d, int k)
{
    return guarded([&] {
        auto *clustering = new faiss::Clustering(d, k);
        clustering->min_points_per_centroid = 1;
        *p_clustering = reinterpret_cast<FaissClustering *>(clustering);
    });
}

void faiss_Clustering_free(FaissClustering *clustering)
{
    delete reinterpret_cast<faiss::Clustering *>(clustering);
}

int faiss_Clustering_train(FaissClustering *clustering, idx_t n, const float *x, FaissIndex *index)
{
    return guarded(
        [&] { reinterpret_cast<faiss::Clustering *>(clustering)->train(n, x, *cast(index)); });
}

void faiss_Clustering_centroids(FaissClustering *clustering, float **centroids, size_t *size)
{
    auto &values = reinterpret_cast<faiss::Clustering *>(clustering)->centroids;
    *centroids = values.data();
    *size = values.size();
}
}
